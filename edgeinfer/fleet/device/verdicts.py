"""`Verdict`: whether a model may go on; and the limits of a Budget that a device can judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import attrs

from edgeinfer.budget import Budget

__all__ = ["Verdict", "check_budget"]

# These are about labels and the original model, which a device has not; publishing judged them.
_NOT_HERE = frozenset({"max_drop", "min_sqnr_db"})


@final
@attrs.frozen
class Verdict:
    """A decision and its reason.

    Attributes:
        ok: True: go on; False: no; None: not yet known.
        code: Why, in one word for programs, such as `latency_p99_ms`.
        detail: The same for people.
    """

    ok: bool | None
    code: str = ""
    detail: str = ""

    @classmethod
    def passed(cls, code: str = "", detail: str = "") -> Verdict:
        """Return a yes."""
        return cls(True, code, detail)

    @classmethod
    def fail(cls, code: str, detail: str) -> Verdict:
        """Return a no."""
        return cls(False, code, detail)

    @classmethod
    def wait(cls, code: str, detail: str = "") -> Verdict:
        """Return that it is not known yet."""
        return cls(None, code, detail)


def check_budget(
    budget: Budget, figures: Mapping[str, float | None], may_lack: frozenset[str] = frozenset()
) -> Verdict:
    """Hold figures against the limits that a device can judge.

    A limit of which there is no figure is not kept: nothing is known, and that is no pass.

    Args:
        budget: The limits.
        figures: By the names of the limits.
        may_lack: Limits that are let pass where there is no figure.
    """
    broken = [
        violation
        for violation in budget.check(figures)
        if violation.limit not in _NOT_HERE
        and not (violation.not_measured and (violation.limit in may_lack or violation.limit == "disk_bytes"))
    ]
    if not broken:
        return Verdict.passed()
    return Verdict.fail(broken[0].limit, "; ".join(violation.describe() for violation in broken))
