"""Which devices can run a plan's binaries."""

from __future__ import annotations

import re

from nrt.errors import PlanTargetError
from nrt.plan import Plan

__all__ = ["check_arch", "runs_on"]

_ARCH = re.compile(r"sm_(\d+)(\d)([af]?)")


def runs_on(built: str, device: str) -> bool:
    """Whether a cubin for ``built`` runs on a device of architecture ``device``.

    Binaries are compatible within a major version towards higher minor ones: ``sm_80`` runs on 8.6,
    8.7 and 8.9. Architecture-specific ones (``sm_90a``) run on that one alone; family-specific ones
    (``sm_100f``) as the plain ones do (CUDA programming guide, binary compatibility).
    """
    have, want = _ARCH.fullmatch(built), _ARCH.fullmatch(device)
    if have is None or want is None:
        return False
    have_cc = (int(have.group(1)), int(have.group(2)))
    want_cc = (int(want.group(1)), int(want.group(2)))
    if have.group(3) == "a":
        return have_cc == want_cc
    return have_cc[0] == want_cc[0] and have_cc[1] <= want_cc[1]


def check_arch(plan: Plan, arch: str, device: str) -> None:
    """Refuse a CUDA plan that ``device`` (its name) of architecture ``arch`` cannot run.

    Raises:
        PlanTargetError: names both, and the way out.
    """
    if not runs_on(plan.target.arch, arch):
        tuned = f" ({plan.target.device})" if plan.target.device else ""
        raise PlanTargetError(
            f"plan {plan.name!r} was built for {plan.target.arch}{tuned}, this device is {arch} "
            f"({device}); rebuild it there, or for it, with `nrt build`"
        )
