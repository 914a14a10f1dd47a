from __future__ import annotations

from dataclasses import replace

import pytest

from nrt.errors import PlanTargetError
from nrt.plan import Target
from nrt.runtime.targets import check_arch, runs_on

from .plans import cuda_plan


@pytest.mark.parametrize(
    ("built", "device", "runs"),
    [
        ("sm_80", "sm_80", True),
        ("sm_80", "sm_86", True),
        ("sm_80", "sm_87", True),
        ("sm_80", "sm_89", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_90a", False),
        ("sm_75", "sm_80", False),
        ("sm_90a", "sm_90a", True),
        ("sm_90", "sm_90a", True),
        ("sm_90a", "sm_100", False),
        ("sm_90a", "sm_89", False),
        ("sm_100", "sm_103", True),
        ("sm_100f", "sm_103", True),
        ("sm_100a", "sm_103", False),
        ("sm_100", "sm_120", False),
        ("ptx", "sm_80", False),
    ],
)
def test_binary_compatibility(built: str, device: str, runs: bool) -> None:
    assert runs_on(built, device) is runs


def test_the_message_names_both() -> None:
    plan = replace(cuda_plan(), target=Target("cuda", "sm_80", "NVIDIA A100"))
    with pytest.raises(
        PlanTargetError,
        match=r"'tiny-cuda' was built for sm_80 \(NVIDIA A100\), this device is sm_90a "
        r"\(NVIDIA H200\); rebuild it .*`nrt build`",
    ):
        check_arch(plan, "sm_90a", "NVIDIA H200")
    check_arch(cuda_plan(), "sm_90a", "NVIDIA H200")
