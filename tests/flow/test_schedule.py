"""Schedules: each firing once among many firers, what was missed by its rule, and errors where an operator looks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import InvalidSchedule
from pgnexus.flow.schedules.firer import SCHEDULES_CHANNEL, ScheduleFirer
from pgnexus.flow.schedules.schedule import Schedule, Schedules
from tests.system import sql, until

YEARLY = "0 0 1 1 *"
THIS_YEAR = datetime.now(UTC).year
PAST_YEARS = [f"{year}-01-01T00:00:00Z" for year in range(2021, THIS_YEAR + 1)]
WHEN = {"when": "{scheduled_at}"}


@pytest.fixture
async def schedules(db: Database) -> Schedules:
    """Schedules in a database that has the flow `report`."""
    await compile_flow(db, "report")
    return Schedules(db)


async def compile_flow(db: Database, name: str) -> None:
    await sql(db, "select pgflow.create_flow(%s)", name)
    await sql(db, "select pgflow.add_step(%s, 'write')", name)


@asynccontextmanager
async def firing(db: Database, listener: Listener | None = None, **options: Any) -> AsyncIterator[None]:
    firer = ScheduleFirer(db, listener, **options)
    if listener is not None:
        await listener.start()
    firer.start()
    yield
    await firer.stop()
    if listener is not None:
        await listener.stop()


async def only(schedules: Schedules, name: str = "yearly") -> Schedule:
    [found] = [schedule for schedule in await schedules.list() if schedule.name == name]
    return found


async def move(db: Database, text: str, name: str = "yearly") -> None:
    """Let a schedule have been due at a time in the past; ``text`` is SQL."""
    await sql(db, f"update pgflow.schedules set next_fire_at = {text} where name = %s", name)


async def fired(schedules: Schedules, name: str = "yearly") -> Schedule:
    """The schedule as soon as its time is in the future again."""

    async def done() -> Schedule | None:
        found = await only(schedules, name)
        return found if found.next_fire_at > datetime.now(UTC) else None

    return await until(done)  # type: ignore[no-any-return]


async def inputs(db: Database, flow: str = "report") -> list[Any]:
    rows = await sql(db, "select input from pgflow.runs where flow_slug like %s || '%%' order by input", flow)
    return [row.input for row in rows]


async def catch_up(db: Database, schedules: Schedules, rule: Any, since: str) -> list[Any]:
    await schedules.put("yearly", "report", YEARLY, input=WHEN, catch_up=rule)
    await move(db, since)
    async with firing(db):
        await fired(schedules)
    return [found["when"] for found in await inputs(db)]


async def test_all_that_were_missed_start_a_run_each(db: Database, schedules: Schedules) -> None:
    assert await catch_up(db, schedules, "all", "'2021-01-01Z'") == PAST_YEARS
    found = await only(schedules)
    assert found.last_fire_at == datetime(THIS_YEAR, 1, 1, tzinfo=UTC)
    assert found.next_fire_at == datetime(THIS_YEAR + 1, 1, 1, tzinfo=UTC)
    [run] = await sql(db, "select input from pgflow.runs where run_id = %s", found.last_run_id)
    assert run.input == {"when": PAST_YEARS[-1]}


async def test_once_starts_one_for_all_with_the_last_of_their_times(
    db: Database, schedules: Schedules
) -> None:
    assert await catch_up(db, schedules, "once", "'2021-01-01Z'") == PAST_YEARS[-1:]


async def test_skip_starts_none_for_what_is_long_past(db: Database, schedules: Schedules) -> None:
    assert await catch_up(db, schedules, "skip", "'2021-01-01Z'") == []
    assert (await only(schedules)).last_fire_at is None


@pytest.mark.parametrize("rule", ["skip", "once", "all"])
async def test_what_is_seconds_late_starts_by_every_rule(
    db: Database, schedules: Schedules, rule: str
) -> None:
    assert len(await catch_up(db, schedules, rule, "now() - interval '5 seconds'")) == 1


async def test_a_long_backlog_goes_in_rounds_and_holds_up_nobody(db: Database, schedules: Schedules) -> None:
    await schedules.put("minutely", "report", "* * * * *", input=WHEN, catch_up="all")
    await schedules.put("yearly", "report", YEARLY, input="now")
    await move(db, "date_trunc('minute', now()) - interval '2 days'", "minutely")
    await move(db, "now()")
    [start] = await sql(db, "select next_fire_at as at from pgflow.schedules where name = 'minutely'")
    async with firing(db):
        found = await fired(schedules, "minutely")
    assert found.last_fire_at is not None
    minutes = int((found.last_fire_at - start.at).total_seconds()) // 60 + 1
    whens = [row["when"] for row in await inputs(db) if row != "now"]
    assert len(whens) == len(set(whens)) == minutes >= 2881
    rounds = await sql(
        db,
        "select count(*) as runs, bool_or(input = '\"now\"') as other from pgflow.runs group by started_at",
    )
    assert max(row.runs for row in rounds) <= 1001
    first = min(await sql(db, "select started_at as at, input from pgflow.runs"), key=lambda row: row.at)
    assert any(row.other for row in rounds)
    assert await sql(db, "select 1 from pgflow.runs where started_at = %s and input = '\"now\"'", first.at)


async def test_many_firers_fire_each_time_once(db: Database, database_url: str, schedules: Schedules) -> None:
    others = [await Database.open(database_url) for _ in range(3)]
    await schedules.put("second", "report", "* * * * * *", input=WHEN, catch_up="all")
    for number in range(20):
        await schedules.put(f"year/{number}", "report", YEARLY, input=[number, WHEN], catch_up="all")
        await move(db, "'2021-01-01Z'", f"year/{number}")
    async with firing(db), firing(others[0]), firing(others[1]), firing(others[2]):
        for number in range(20):
            await fired(schedules, f"year/{number}")
        await until(lambda: sql(db, "select 1 from pgflow.runs where input ? 'when' offset 2"))
    for other in others:
        await other.close()
    found = [item for item in await inputs(db) if isinstance(item, list)]
    assert found == [[number, {"when": year}] for number in range(20) for year in PAST_YEARS]
    seconds = [item["when"] for item in await inputs(db) if isinstance(item, dict)]
    first = datetime.fromisoformat(seconds[0])
    assert [datetime.fromisoformat(second) for second in seconds] == [
        first + timedelta(seconds=n) for n in range(len(seconds))
    ]


async def test_of_those_who_saw_the_same_only_one_wins(db: Database, schedules: Schedules) -> None:
    """The statement itself, for two who win would start the same runs, and nobody would see it."""
    await schedules.put("yearly", "report", YEARLY)
    now = datetime.now(UTC)
    for number in range(30):
        [row] = await db.query("find_schedules", {"name": "yearly"})
        params = {
            "names": ["yearly"],
            "versions": [row.version],
            "next_fire_ats": [now + timedelta(days=number)],
            "due_names": ["yearly"],
            "due": [now + timedelta(hours=number)],
        }
        won = await asyncio.gather(*(db.query("fire_schedules", params) for _ in range(4)))
        assert sum(len(rows) for rows in won) == 1
        assert await db.query("fire_schedules", params) == []
    assert len(await inputs(db)) == 30


async def test_a_time_that_was_fired_starts_nothing_again(db: Database, schedules: Schedules) -> None:
    await catch_up(db, schedules, "all", "'2021-01-01Z'")
    assert await catch_up(db, schedules, "all", "'2021-01-01Z'") == PAST_YEARS
    assert (await only(schedules)).last_error is None


async def test_a_flow_that_is_not_there_is_its_schedules_error_and_nobody_elses(
    db: Database, schedules: Schedules, caplog: pytest.LogCaptureFixture
) -> None:
    await schedules.put("lost", "nowhere", YEARLY)
    await schedules.put("yearly", "report", YEARLY)
    with caplog.at_level(logging.ERROR):
        for past in ("'2021-01-01Z'", "'2022-01-01Z'"):
            await move(db, past)
            await move(db, past, "lost")
            async with firing(db):
                lost = await fired(schedules, "lost")
                assert (await fired(schedules)).last_error is None
    assert lost.last_error is not None
    assert "nowhere" in lost.last_error
    assert lost.last_run_id is None
    assert [record.message for record in caplog.records] == [
        f"schedule lost: started nothing: {lost.last_error}"
    ]
    await compile_flow(db, "nowhere")
    await move(db, "now()", "lost")
    async with firing(db):
        await until(lambda: inputs(db, "nowhere"))
        assert (await fired(schedules, "lost")).last_error is None


async def test_a_fault_that_passes_costs_no_firing(
    db: Database, schedules: Schedules, caplog: pytest.LogCaptureFixture
) -> None:
    await schedules.put("yearly", "report", YEARLY)
    await move(db, "'2021-01-01Z'")
    await sql(
        db,
        """create function public.busy() returns trigger language plpgsql as
           $$ begin raise exception using errcode = '40001', message = 'busy'; end $$""",
    )
    await sql(db, "create trigger busy before insert on pgflow.runs execute function public.busy()")
    async with firing(db):
        await until(lambda: asyncio.sleep(0, "busy" in caplog.text))
        found = await only(schedules)
        assert (found.last_error, found.next_fire_at.year) == (None, 2021)
        await sql(db, "drop trigger busy on pgflow.runs")
        await fired(schedules)
    assert len(await inputs(db)) == 1


async def test_a_row_that_makes_no_sense_holds_up_nobody(
    db: Database, schedules: Schedules, caplog: pytest.LogCaptureFixture
) -> None:
    await schedules.put("bad", "report", YEARLY)
    await schedules.put("yearly", "report", YEARLY)
    await sql(db, "update pgflow.schedules set cron = 'whenever' where name = 'bad'")
    await move(db, "'2021-01-01Z'", "bad")
    await move(db, "'2021-01-01Z'")
    async with firing(db):
        bad = await fired(schedules, "bad")
        await fired(schedules)
    assert bad.last_error is not None
    assert bad.last_error.startswith('cron: "whenever"')
    assert f"schedule bad: makes no sense: {bad.last_error}" in caplog.text
    assert len(await inputs(db)) == 1


async def test_paused_it_fires_nothing_and_catches_up_on_nothing(db: Database, schedules: Schedules) -> None:
    await schedules.put("yearly", "report", YEARLY, catch_up="all")
    await schedules.put("other", "report", YEARLY, input="other")
    assert await schedules.pause("yearly")
    await move(db, "'2021-01-01Z'")
    await move(db, "now()", "other")
    async with firing(db):
        await until(lambda: inputs(db))
        assert await schedules.resume("yearly")
        await fired(schedules)
    assert await inputs(db) == ["other"]
    found = await only(schedules)
    assert (found.paused_at, found.next_fire_at.year) == (None, THIS_YEAR + 1)


async def test_a_change_wakes_the_firer_and_its_timer_the_next(
    db: Database, database_url: str, schedules: Schedules
) -> None:
    listener = Listener(database_url)
    woken = asyncio.Event()
    listener.subscribe(SCHEDULES_CHANNEL, lambda _: woken.set())
    async with firing(db, listener, poll_interval=3600):
        await until(lambda: asyncio.sleep(0, woken.is_set()))
        await schedules.put("second", "report", "* * * * * *", input=WHEN)
        await until(lambda: sql(db, "select 1 from pgflow.runs offset 2"))


async def test_put_again_changes_only_what_changed(db: Database, schedules: Schedules) -> None:
    await schedules.put("yearly", "report", YEARLY)
    await schedules.pause("yearly")
    await move(db, "'2021-01-01Z'")
    await schedules.put("yearly", "report", YEARLY, input={"a": 1}, catch_up="skip")
    found = await only(schedules)
    assert (found.input, found.catch_up, found.next_fire_at.year) == ({"a": 1}, "skip", 2021)
    assert found.paused_at is not None
    await schedules.put("yearly", "report", YEARLY, time_zone="Asia/Tokyo")
    assert (await only(schedules)).next_fire_at == datetime(THIS_YEAR, 12, 31, 15, tzinfo=UTC)
    await move(db, "'2021-01-01Z'")
    await schedules.put("yearly", "report", YEARLY, time_zone="Asia/Tokyo", paused=False)
    found = await only(schedules)
    assert (found.paused_at, found.next_fire_at.year) == (None, THIS_YEAR)


async def test_what_is_not_there_is_said(schedules: Schedules) -> None:
    await schedules.put("yearly", "report", YEARLY, paused=True)
    assert (await only(schedules)).paused_at is not None
    for verb in (schedules.pause, schedules.resume, schedules.remove):
        assert await verb("yearly")
        assert not await verb("nobody")
    assert await schedules.list() == []


async def test_a_preview_is_in_the_schedules_zone(schedules: Schedules) -> None:
    [first, second] = await schedules.preview("30 6 * * *", "Asia/Tokyo", 2)
    assert first.isoformat()[10:] == "T06:30:00+09:00"
    assert second - first == timedelta(days=1)
    with pytest.raises(InvalidSchedule, match=r"^count: "):
        await schedules.preview(YEARLY, count=0)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "two words"}),
        ("name", {"name": "x" * 129}),
        ("name", {"name": None}),
        ("flow", {"flow": "run"}),
        ("flow", {"flow": "no-slug"}),
        ("cron", {"cron": "every day"}),
        ("cron", {"cron": "0 0 30 2 *"}),
        ("time_zone", {"time_zone": "CEST/Berlin"}),
        ("catch_up", {"catch_up": "twice"}),
        ("input.a", {"input": {"a": float("nan")}}),
        ("input", {"input": object()}),
    ],
)
async def test_what_makes_no_sense_is_refused_by_its_field(
    schedules: Schedules, field: str, given: dict[str, Any]
) -> None:
    with pytest.raises(InvalidSchedule, match=f"^{field}: "):
        await schedules.put(**{"name": "yearly", "flow": "report", "cron": YEARLY} | given)
    assert await schedules.list() == []


@pytest.mark.parametrize("role", ["caller_url", "nexus_url"])
async def test_both_roles_put_and_fire(
    role: str, request: pytest.FixtureRequest, schedules: Schedules
) -> None:
    db = await Database.open(request.getfixturevalue(role))
    try:
        assert len(await catch_up(db, Schedules(db), "once", "'2021-01-01Z'")) == 1
    finally:
        await db.close()
