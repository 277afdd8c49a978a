"""From the description of one step to the step; what is wrong with it joins the description's faults."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pgnexus.errors import StepFailed
from pgnexus.flow.built.actions import WAIT, Action, Actions
from pgnexus.flow.built.description import Description, StepDescription
from pgnexus.flow.built.step import ELEMENT, INPUT, ActionStep, PromptStep
from pgnexus.flow.built.template import names_in
from pgnexus.flow.define.llm import asked_format
from pgnexus.flow.define.options import StepOptions
from pgnexus.flow.define.prompt import Answer, deferral
from pgnexus.flow.define.step import Step, WaitStep
from pgnexus.flow.define.values import Codec, Misfit

_OPTIONS = ("max_attempts", "base_delay", "start_delay", "only_if", "unless", "when_unmet", "when_exhausted")
_OF_ROOT_TYPE: dict[Any, Any] = {"array": list[Any], "object": dict[str, Any], "string": str}


class Maker:
    """Makes one step of its description; what is wrong goes to the faults."""

    def __init__(self, actions: Actions, found: Description, index: int) -> None:
        self._actions = actions
        self._found = found
        self._place = f"steps[{index}]"
        self._earlier = {step.slug for at, step in found.steps.items() if at < index}

    def make(self, step: StepDescription) -> Step | None:
        before = len(self._found.faults)
        made = {"use": self._action, "prompt": self._prompt, "wait": self._wait}[step.kind](step)
        return made if len(self._found.faults) == before else None

    def _fault(self, path: str, text: str) -> None:
        self._found.fault(f"{self._place}.{path}", text)

    def _common(self, step: StepDescription, names: set[str], *, timeout: bool = True) -> dict[str, Any]:
        """What every kind of step has: dependencies, options."""
        given = {name: getattr(step, name) for name in (*_OPTIONS, *(["timeout"] if timeout else []))}
        return {
            "depends_on": self._depends_on(step, names),
            "options": StepOptions.make(self._place, given),
        }

    def _depends_on(self, step: StepDescription, names: set[str]) -> tuple[str, ...]:
        self._refer(step.slug, "over", [] if step.over is None else [step.over])
        self._refer(step.slug, "depends_on", step.depends_on)
        if step.over is not None:
            return (step.over,)
        return tuple(dict.fromkeys([*step.depends_on, *sorted(names - {INPUT, ELEMENT})]))

    def _refer(self, own: str, path: str, slugs: list[str], more: str = "") -> None:
        for slug in slugs:
            if slug == own:
                self._fault(path, "the step depends on itself; remove that")
            elif slug not in self._found.slugs:
                close = difflib.get_close_matches(slug, self._found.slugs, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                self._fault(path, f"there is no step {slug!r}{hint}{more}")

    def _names(self, step: StepDescription, path: str, template: Any) -> set[str]:
        """What placeholders refer to; those that refer to nothing are faults."""
        names = set(names_in(template))
        for name in sorted(names):
            if name == ELEMENT and step.over is None:
                self._fault(path, "{element} is there only in a step with over")
            elif name not in (ELEMENT, INPUT) and step.over is not None:
                self._fault(
                    path,
                    f"a step with over sees {{element}} and {{input}} only, not {{{name}}}; use {{element}}",
                )
            elif name not in (ELEMENT, INPUT) and name not in self._found.slugs:
                self._refer(step.slug, path, [name], "; for the text itself double its braces")
            elif name == step.slug:
                self._refer(step.slug, path, [name])
        return names

    def _wait(self, step: StepDescription) -> Step:
        assert step.wait is not None
        return WaitStep(step.slug, timeout=step.wait, handler_name=WAIT, **self._common(step, set()))

    def _prompt(self, step: StepDescription) -> Step | None:
        assert step.prompt is not None
        names = self._names(step, "prompt", step.prompt) | self._names(step, "system", step.system)
        settings: dict[str, Any] = {
            name: value
            for name in ("complexity", "task_type", "max_tokens", "temperature", "timeout")
            if (value := getattr(step, name)) is not None
        }
        returns: Answer = "text" if step.returns == "text" else "json"
        field: str | None = None
        output: Any = str
        if step.returns != "text":
            schema = None if step.returns == "json" else step.returns
            settings["response_format"], field = asked_format(step.slug, schema)
            output = Any if schema is None else _OF_ROOT_TYPE.get(schema.get("type"), Any)
        try:
            deferral(step.prompt, settings, returns, field)
        except StepFailed as error:
            self._fault("prompt", str(error))
            return None
        return PromptStep(
            step.slug,
            step.prompt,
            system=step.system,
            settings=settings,
            returns=returns,
            field=field,
            is_map=step.over is not None,
            output=Codec(output),
            **self._common(step, names, timeout=False),
        )

    def _action(self, step: StepDescription) -> Step | None:
        assert step.use is not None
        action = self._actions.get(step.use)
        if action is None:
            known = [one.name for one in self._actions]
            close = difflib.get_close_matches(step.use, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}"
            self._fault("use", f"there is no action {step.use!r}; {hint}")
            return None
        names = self._names(step, "with", step.with_)
        arguments = self._arguments(step, action, names)
        common = self._common(step, set(names_in(arguments)))
        return ActionStep(step.slug, action, arguments, is_map=step.over is not None, **common)

    def _arguments(self, step: StepDescription, action: Action, names: set[str]) -> dict[str, Any]:
        arguments = dict(step.with_)
        known = {one.name: one for one in action.fillable}
        for name, value in step.with_.items():
            if name not in known:
                self._fault(
                    f"with.{name}", f"the action {action.name} has no such parameter; it has {_list(known)}"
                )
            elif not set(names_in(value)):
                self._check_constant(f"with.{name}", known[name].codec, value)
        left = [one for one in known.values() if one.name not in arguments]
        if step.over is not None:
            if left and ELEMENT not in names:
                arguments[left[0].name] = f"{{{ELEMENT}}}"
        else:
            self._fill_by_name(step, [one.name for one in left], arguments)
            self._fill_the_one_left(step, [one.name for one in left if not one.has_default], arguments)
        for one in left:
            if one.name not in arguments and not one.has_default:
                self._fault(
                    "with",
                    f"nothing fills the parameter {one.name!r} of {action.name}; give it a constant, or a "
                    f'placeholder such as {{"{one.name}": "{{some_step}}"}}',
                )
        return arguments

    def _check_constant(self, path: str, codec: Codec, value: Any) -> None:
        try:
            codec.decode(value, "the value")
        except Misfit as error:
            self._fault(path, str(error))

    def _fill_by_name(self, step: StepDescription, left: list[str], arguments: dict[str, Any]) -> None:
        """As in code: a parameter named like an earlier step is that step's output."""
        for name in left:
            if name in self._earlier or name in step.depends_on:
                arguments[name] = f"{{{name}}}"

    def _fill_the_one_left(self, step: StepDescription, left: list[str], arguments: dict[str, Any]) -> None:
        """One parameter and one dependency, or the run's input, need no naming."""
        open_ones = [name for name in left if name not in arguments]
        used = set(names_in(arguments))
        free = [slug for slug in step.depends_on if slug not in used]
        if len(open_ones) != 1:
            return
        if len(free) == 1:
            arguments[open_ones[0]] = f"{{{free[0]}}}"
        elif not step.depends_on and not used:
            arguments[open_ones[0]] = f"{{{INPUT}}}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
