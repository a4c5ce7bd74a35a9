"""How a run of a system ended."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Codes of ``Solution.status``; those above 1 are failures, and the state is the last good one."""

    DONE = 0  # reached the last time
    EVENT = 1  # a terminal event
    PINNED = 2  # reached it, at rest away from consensus: a saddle, or motion below the spacing of floats
    MAX_STEPS = 3
    STEP_TOO_SMALL = 4  # the step fell below the spacing of times: stiff, or not smooth
    NOT_FINITE = 5  # overflow
    FAILED = 6  # the solver gave up

    @property
    def meaning(self) -> str:
        """In words, with what to do."""
        return MEANINGS[self]


MEANINGS = {
    Status.DONE: "reached the last time",
    Status.EVENT: "stopped by an event",
    Status.PINNED: (
        "pinned: particles that attract each other rest away from consensus. Either the start is a saddle, or their motion is "
        "below the spacing of floats ('metastable for ever' may be rounding); take float64, longer steps, or the merge model"
    ),
    Status.MAX_STEPS: "took as many steps as allowed; take Stiff() where scales are far apart, or raise max_steps",
    Status.STEP_TOO_SMALL: "the step fell below the spacing of times: the motion is stiff or not smooth; take Stiff('LSODA')",
    Status.NOT_FINITE: "the state or the velocity overflowed; take shorter steps, scaled=True, or Rescaled",
    Status.FAILED: "the solver gave up; take another method or looser tolerances",
}
