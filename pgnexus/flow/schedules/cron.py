"""Beside every run that nobody starts by hand: a cron expression in a time zone, and the moments it names."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from pgnexus.errors import InvalidSchedule

_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_LONGEST = 200
_TICK = timedelta(microseconds=1)


class Cron:
    """When something fires: five fields, or six with seconds first, or a name such as ``@daily``.

    Fields are read as Debian's cron reads them; ``L`` is the last day of a month, ``MON#1`` its first Monday,
    ``5L`` its last Friday. The time zone is an IANA name. Where clocks change:

    - An expression that names hours goes by the clock on the wall. A time that does not exist fires
      when the gap ends, several of them once; a time that exists twice fires the first time.
    - One for every hour of the day goes by elapsed time: ``30 * * * *`` fires each hour, none left out, none
      doubled, whatever the clock shows.

    Raises `InvalidSchedule` naming the field at fault.

    >>> cron = Cron("30 2 * * *", "Europe/Berlin")  # 02:30 does not exist on 29 March 2026
    >>> cron.after(datetime(2026, 3, 29, tzinfo=UTC)).isoformat()
    '2026-03-29T01:00:00+00:00'
    """

    def __init__(self, expression: str, time_zone: str = "UTC") -> None:
        self.zone = _zone(time_zone)
        self._expression = expression
        if not isinstance(expression, str) or len(expression) > _LONGEST:
            raise InvalidSchedule(f"cron: must be a text of at most {_LONGEST} characters")
        fields = _NAMES.get(expression.strip().lower(), expression).split()
        try:
            hours = CronSim(" ".join(fields), datetime(2000, 1, 1)).hours
        except (CronSimError, ValueError) as error:
            raise InvalidSchedule(f'cron: "{expression}" cannot fire: {_advice(error)}') from None
        self._every_hour = len(hours) == 24
        if self._every_hour:  # also where it is spelt out as 0-23
            fields[-4] = "*"
        self._fields = " ".join(fields)

    def after(self, moment: datetime) -> datetime:
        """The first time it fires after ``moment``, in UTC; `InvalidSchedule` if none is within 50 years."""
        return next(self.times(moment))

    def times(self, after: datetime) -> Iterator[datetime]:
        """The times it fires after ``after``, in UTC and in order, each once."""
        start = after.astimezone(self.zone)
        # Times on the wall are walked without a zone, which is the library's way to leave it to us.
        simulator = CronSim(self._fields, start if self._every_hour else start.replace(tzinfo=None))
        last = after
        while True:
            try:
                found = self._moment(next(simulator))
            except (StopIteration, OverflowError, ValueError):
                raise InvalidSchedule(f'cron: "{self._expression}" never fires') from None
            if found > last:  # else the same hour a second time, or one more out of the same gap
                last = found
                yield found

    def latest(self, first: datetime, until: datetime) -> datetime:
        """The last time it fires from ``first``, which counts as one, to ``until``."""
        low, high = first, until
        while high - low > _TICK:  # by halves, for there may be millions between
            middle = low + (high - low) / 2
            found = self.after(middle)
            if found <= until:
                low = found
            else:
                high = middle
        return low

    def _moment(self, found: datetime) -> datetime:
        if self._every_hour:
            return found.astimezone(UTC)
        while not _exists(found, self.zone):
            found = found.replace(second=0) + timedelta(minutes=1)
        return found.replace(tzinfo=self.zone).astimezone(UTC)


def _exists(wall: datetime, zone: tzinfo) -> bool:
    local = wall.replace(tzinfo=zone)
    return local == local.astimezone(UTC).astimezone(zone)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        if name != "localtime":  # another one on every machine
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        pass
    raise InvalidSchedule(f'time_zone: "{name}" is no IANA time zone, such as Europe/Berlin')


def _advice(error: Exception) -> str:
    text = str(error)
    if text.startswith("Bad "):
        return f"look at its {text.removeprefix('Bad ')}"
    return "write minute, hour, day of month, month and day of week (or second before them)"
