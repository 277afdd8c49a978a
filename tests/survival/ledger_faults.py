"""What was done to the system in one round of the ledger, and what that excuses."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.survival.ledger_vendor import VendorCall


@dataclass
class Faults:
    """What was done to the system, in seconds of time.monotonic()."""

    frozen: list[tuple[str, float, float]] = field(default_factory=list)  # worker, from, to
    killed: list[tuple[str, float]] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    crashed: bool = False  # an outage was a crash, which loses what nobody waited for
    given_up: set[str] = field(default_factory=set)  # workers that were late for another reason

    def orphaned(self, call: VendorCall) -> bool:
        """Whether others may have been given the call's slot, and its request, while it was under way."""
        assert call.ended is not None
        return call.worker in self.given_up or any(
            worker == call.worker and call.began < end and call.ended > begin
            for worker, begin, end in self.frozen
        )

    def note_lost(self, call: VendorCall, charged: bool) -> bool:
        """Whether the note of a call may be lost: its worker was killed while it was under way, and just after it began
        (if no budget pays for it), or the database was away or crashed meanwhile.
        """
        assert call.ended is not None
        if not any(
            name == call.worker and call.began - 1 <= when <= call.ended + 1 for name, when in self.killed
        ):
            return False
        fresh = any(name == call.worker and when - call.began < 0.5 for name, when in self.killed)
        crashed = any(begin - 1 <= call.ended and call.began <= end + 1 for begin, end in self.outages)
        return crashed or (fresh and not charged)

    def away(self, moment: float) -> bool:
        """Whether the database was away, or about to be, at this moment."""
        return any(begin - 1 <= moment <= end + 1 for begin, end in self.outages)
