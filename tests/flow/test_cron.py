"""Cron: what fires when, above all where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnexus.errors import InvalidSchedule
from pgnexus.flow.schedules.cron import Cron

BERLIN = "Europe/Berlin"
SPRING = datetime(2026, 3, 28, 12, tzinfo=UTC)  # 02:00 to 03:00 does not exist on the 29th
AUTUMN = datetime(2026, 10, 24, 12, tzinfo=UTC)  # 02:00 to 03:00 exists twice on the 25th
EXPRESSIONS = ["30 2 * * *", "*/20 2 * * *", "0 */2 * * *", "*/7 * * * *", "0 12 * * MON-FRI", "15 0 L * *"]
ZONES = [
    BERLIN,
    "America/New_York",
    "Africa/Cairo",
    "America/Havana",
    "Australia/Lord_Howe",
    "Asia/Tokyo",
    "UTC",
]
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))


def on_the_wall(expression: str, start: datetime, hours: int) -> list[str]:
    cron = Cron(expression, BERLIN)
    end = start + timedelta(hours=hours)
    times = takewhile(lambda moment: moment <= end, cron.times(start))
    return [moment.astimezone(cron.zone).strftime("%d %H:%M%z") for moment in times]


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        ("30 2 * * *", ["29 03:00+0200", "30 02:30+0200"]),
        ("0,15,30 2 * * *", ["29 03:00+0200", "30 02:00+0200", "30 02:15+0200", "30 02:30+0200"]),
        ("*/30 2 * * *", ["29 03:00+0200", "30 02:00+0200", "30 02:30+0200"]),
        ("0 2,3 * * *", ["29 03:00+0200", "30 02:00+0200", "30 03:00+0200"]),
        ("30 1 * * *", ["29 01:30+0100", "30 01:30+0200"]),
        ("15 30 2 * * *", ["29 03:00+0200", "30 02:30+0200"]),
    ],
)
def test_a_time_that_does_not_exist_fires_when_the_gap_ends(expression: str, fires: list[str]) -> None:
    assert on_the_wall(expression, SPRING, 40) == fires


@pytest.mark.parametrize(
    ("expression", "fires"),
    [
        ("30 2 * * *", ["25 02:30+0200", "26 02:30+0100"]),
        ("*/30 2 * * *", ["25 02:00+0200", "25 02:30+0200", "26 02:00+0100", "26 02:30+0100"]),
        (
            "0 0-4/2 * * *",
            ["25 00:00+0200", "25 02:00+0200", "25 04:00+0100", *(f"26 0{h}:00+0100" for h in (0, 2, 4))],
        ),
        ("0 30 2 * * *", ["25 02:30+0200", "26 02:30+0100"]),
    ],
)
def test_a_time_that_exists_twice_fires_once(expression: str, fires: list[str]) -> None:
    assert on_the_wall(expression, AUTUMN, 41) == fires


def test_in_the_second_of_two_hours_the_first_is_over() -> None:
    second = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10, the second time
    assert Cron("30 2 * * *", BERLIN).after(second) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize("hours", ["*", "0-23", "*/1"])
@pytest.mark.parametrize("start", [SPRING, AUTUMN])
def test_every_hour_means_each_hour_that_passes(hours: str, start: datetime) -> None:
    times = list(islice(Cron(f"30 {hours} * * *", BERLIN).times(start), 40))
    assert times == [start + timedelta(minutes=30, hours=n) for n in range(40)]


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("@daily", "2026-03-29T00:00:00"),
        ("@Hourly", "2026-03-28T13:00:00"),
        ("*/10 * * * * *", "2026-03-28T12:00:10"),
        ("0 0 L * *", "2026-03-31T00:00:00"),
        ("0 9 * * mon#1", "2026-04-06T09:00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00"),
    ],
)
def test_what_can_be_written(expression: str, first: str) -> None:
    assert Cron(expression).after(SPRING) == datetime.fromisoformat(first).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "",
            "*",
            "* * * *",
            "* * * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
        ),
        *(
            "*/0 * * * *",
            "5-1 * * * *",
            "0.5 * * * * *",
            "*/0.5 * * * * *",
            "a b c d e",
            "@reboot",
            "1,,2 * * * *",
        ),
        *("9" * 99 + " * * * *", "* " * 101, "0 0 30 2 *", "0 0 31 4,6 *", "0 0 * 2 ¹L", "* * * * \x00"),
    ],
)
def test_what_makes_no_sense_is_the_crons_fault(expression: str) -> None:
    with pytest.raises(InvalidSchedule, match=r"^cron: "):
        Cron(expression).after(SPRING)


def test_a_day_that_never_comes_is_the_crons_fault() -> None:
    with pytest.raises(InvalidSchedule, match="never fires"):
        Cron("0 0 */20 * 1L").after(SPRING)


@pytest.mark.parametrize(
    "zone", ["", "Berlin", "Mars/Olympus", "Europe", "../UTC", "/etc/passwd", "localtime", "a\0b", None, 3]
)
def test_a_zone_that_is_none_is_the_zones_fault(zone: str) -> None:
    with pytest.raises(InvalidSchedule, match=r"^time_zone: "):
        Cron("* * * * *", zone)


@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS)
def test_times_only_go_on_and_can_be_taken_up_anywhere(expression: str, zone: str, start: datetime) -> None:
    cron = Cron(expression, zone)
    times = list(islice(cron.times(start), 30))
    assert all(earlier < later for earlier, later in zip([start, *times], times, strict=False))
    assert [cron.after(moment) for moment in times[:-1]] == times[1:]


@given(st.sampled_from(ZONES), MOMENTS, st.sampled_from(["0 0 * * *", "30 2 * * *", "45 1 * * *"]))
def test_once_a_day_is_once_on_each_day_everywhere(zone: str, start: datetime, expression: str) -> None:
    cron = Cron(expression, zone)
    days = [moment.astimezone(cron.zone).date() for moment in islice(cron.times(start), 400)]
    assert days == [days[0] + timedelta(days=n) for n in range(400)]


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(ZONES),
    MOMENTS,
    st.timedeltas(timedelta(0), timedelta(days=4)),
)
def test_the_latest_is_the_last_of_them_all(
    expression: str, zone: str, first: datetime, span: timedelta
) -> None:
    cron = Cron(expression, zone)
    all_of_them = [first, *takewhile(lambda moment: moment <= first + span, cron.times(first))]
    assert cron.latest(first, first + span) == all_of_them[-1]


def test_the_latest_of_millions_is_found() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    assert Cron("* * * 1 1 *").latest(datetime(2000, 1, 1, tzinfo=UTC), now) == datetime(
        2026, 1, 1, 23, 59, 59, tzinfo=UTC
    )
