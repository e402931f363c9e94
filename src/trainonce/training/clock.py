"""Which steps are left out, so that a training takes the time that was planned for it."""

from collections.abc import Sequence

from trainonce.recipes import PhaseSteps, phase_at

TOLERATED = 0.02
"""A training that is predicted to take so much more than its time, as a part of it, is left as it is."""
NEW = 0.1
"""The weight of the last stretch of steps in the pace; the rest is what the pace was before."""
MOST = 0.9
"""The largest share of the coming steps that is left out: the learning rate falls to its end in some."""


class Clock:
    """Compares what steps take with what they were planned to take, and says how many there is no time for.

    `step_s` are the seconds of a step that were planned, phase by phase. The time for the whole run follows from them.
    """

    def __init__(self, table: Sequence[PhaseSteps], step_s: Sequence[float], *, step: int, seconds: float) -> None:
        self.table, self.step_s = tuple(table), tuple(step_s)
        self.limit_s = self._planned(0)
        self.slower = 1.0
        self.seen_s, self.unpaid = seconds, 0.0
        self.step = step

    def _planned(self, step: int) -> float:
        """What is planned for the steps from `step` to the end."""
        return sum(
            (entry.end - max(step, entry.start)) * each
            for entry, each in zip(self.table, self.step_s, strict=True)
            if step < entry.end
        )

    def leave_out(self, step: int, seconds: float) -> int:
        """How many of the steps from `step` on are to be left out now: of a phase, all but its last at most.

        To be asked after a stretch of steps, all of them trained, of the phase that the last call left off in;
        `seconds` is what training took so far.
        """
        trained = step - self.step
        took, self.seen_s, self.step = seconds - self.seen_s, seconds, step
        left = self._planned(step)
        if not trained or not left:
            return 0
        entry = phase_at(self.table, step - 1)
        self.slower += NEW * (took / (trained * self.step_s[entry.index]) - self.slower)
        if seconds + self.slower * left <= self.limit_s * (1 + TOLERATED):
            return 0
        share = min(MOST, 1 - (self.limit_s - seconds) / (self.slower * left))
        self.unpaid += trained * share / (1 - share)
        few = min(int(self.unpaid), max(0, entry.end - step - 1))
        self.unpaid -= int(self.unpaid)
        self.step += few
        return few
