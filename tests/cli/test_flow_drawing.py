"""The drawing of a graph, and its tree: everything is there, where it belongs."""

from hypothesis import given
from hypothesis import strategies as st

from pgnexus.cli.flow.drawing import draw
from pgnexus.cli.flow.graph import Node
from pgnexus.cli.flow.tree import tree


def nodes(*described):
    """Steps from texts such as "c:a,b", a step behind two others."""
    found = []
    for text in described:
        slug, _, depends_on = text.partition(":")
        found.append(Node(slug=slug, depends_on=tuple(depends_on.split(",")) if depends_on else ()))
    return found


def drawn(*described):
    return "\n".join(line.plain.rstrip() for line in draw(nodes(*described), 200))


def test_lines_that_lead_to_the_same_step_are_one():
    assert drawn("a", "b:a", "c:a", "d:b,c") == (
        """\
      ╭────────╮
      │   a    │
      │ single │
      ╰───┬────╯
    ┌─────┴──────┐
    ▼            ▼
╭────────╮   ╭────────╮
│   b    │   │   c    │
│ single │   │ single │
╰───┬────╯   ╰───┬────╯
    └─────┬──────┘
          ▼
      ╭────────╮
      │   d    │
      │ single │
      ╰────────╯"""
    )


def test_a_line_passes_the_layers_between():
    assert drawn("a", "b:a", "c:a,b") == (
        """\
    ╭────────╮
    │   a    │
    │ single │
    ╰───┬────╯
    ┌───┴────┐
    ▼        │
╭────────╮   │
│   b    │   │
│ single │   │
╰───┬────╯   │
    └───┬────┘
        ▼
    ╭────────╮
    │   c    │
    │ single │
    ╰────────╯"""
    )


def test_where_lines_only_cross_the_one_that_goes_down_is_whole():
    lines = drawn("a", "b", "x:a", "y:a,b", "z:x,b", "w:y,a").splitlines()
    assert any("─│─" in line for line in lines)


@st.composite
def graphs(draw_one):
    count = draw_one(st.integers(1, 12))
    found = []
    for place in range(count):
        before = [node.slug for node in found]
        deps = draw_one(st.lists(st.sampled_from(before), unique=True, max_size=4)) if before else []
        is_map = draw_one(st.booleans())
        found.append(
            Node(
                slug=f"step_{place}_{'x' * draw_one(st.integers(0, 40))}",
                depends_on=tuple(deps),
                is_map=is_map,
            )
        )
    return found


@given(graphs())
def test_every_step_has_a_whole_box(found):
    text = "\n".join(line.plain for line in draw(found, 10_000))
    for node in found:
        assert f" step_{node.slug.split('_')[1]}_" in text
    for corners, wanted in (("╭╮╰╯", False), ("╔╗╚╝", True)):
        for corner in corners:
            assert text.count(corner) == sum(node.is_map is wanted for node in found)


@given(graphs())
def test_lines_begin_and_end_at_steps(found):
    text = "\n".join(line.plain for line in draw(found, 10_000))
    targets = {node.slug for node in found if node.depends_on}
    sources = {slug for node in found for slug in node.depends_on}
    assert text.count("▼") == len(targets)
    assert sum(text.count(begin) for begin in "┬╤") >= len(sources)
    assert not set(text) & set("╵╷╴╶"), "a line that leads nowhere"


def test_what_would_be_too_wide_is_not_drawn():
    steps = nodes("a", "b", "c")
    assert max(line.cell_len for line in draw(steps, 36)) == 36
    assert draw(steps, 35) is None
    assert draw(nodes(*(f"step_{number}" for number in range(20_000))), 200) is None


def test_a_long_chain_is_a_tree_like_any_other():
    shown = list(tree(nodes("s0", *(f"s{number}:s{number - 1}" for number in range(1, 3000)))))
    assert [node.slug for *_, node in shown][-1] == "s2999"
    assert max(len(guide) for guide, *_ in shown) <= 20


@given(graphs())
def test_a_tree_has_every_step_once_and_below_one_it_follows(found):
    shown = list(tree(found))
    assert sorted(node.slug for *_, node in shown) == sorted(node.slug for node in found)
    seen = set()
    for guide, _, node in shown:
        assert (guide == "") == (not node.depends_on)
        assert not node.depends_on or seen & set(node.depends_on)
        seen.add(node.slug)
