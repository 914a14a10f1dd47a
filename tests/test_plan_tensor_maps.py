"""Tensor maps in a plan: written, read back, refused where the copy engine cannot take them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from runtime.plans import cuda_plan

from nrt.errors import PlanError
from nrt.plan import BufferRef, LaunchStep, Plan, TensorMapArg
from nrt.plan_check import check_plan
from nrt.plan_file import plan_from_bytes, plan_to_bytes

# 8 images of 4x4 pixels with 16 channels of fp16, in 4096 bytes of weights.
IMAGES = TensorMapArg(
    BufferRef("weights", 0, 4096), "fp16", (16, 4, 4, 8), (32, 128, 512),
    (16, 64), (1, 2, 1, 1), (-1, -1), (-1, -1),
)  # fmt: skip
MATRIX = TensorMapArg(BufferRef("weights", 16, 2048), "fp16", (64, 16), (128,), (64, 8), (1, 1))


def with_maps(*maps: TensorMapArg) -> Plan:
    """A plan whose first launch also takes ``maps``."""
    plan = replace(cuda_plan(), weights=bytes(8192))
    steps = list(plan.steps)
    index = next(i for i, step in enumerate(steps) if isinstance(step, LaunchStep))
    launch = steps[index]
    assert isinstance(launch, LaunchStep)
    steps[index] = replace(launch, args=(*launch.args, *maps))
    return replace(plan, steps=tuple(steps))


def test_a_plan_with_tensor_maps_comes_back() -> None:
    plan = with_maps(IMAGES, MATRIX)
    check_plan(plan)
    assert plan_from_bytes(plan_to_bytes(plan)) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (64,)}, "1 dimensions whose fields do not fit together"),
        ({"strides": ()}, "whose fields do not fit together"),
        ({"steps": (1,)}, "whose fields do not fit together"),
        ({"box": (64,)}, "whose fields do not fit together"),
        ({"lower": (0, 0)}, "whose fields do not fit together"),
        ({"strides": (120,)}, "outside the limits of the copy engine"),
        ({"box": (512, 8)}, "outside the limits of the copy engine"),
        ({"box": (0, 8)}, "outside the limits of the copy engine"),
        ({"steps": (9, 1)}, "outside the limits of the copy engine"),
        ({"swizzle": 48}, "outside the limits of the copy engine"),
        ({"ref": BufferRef("weights", 8, 2048)}, "outside the limits of the copy engine"),
        ({"ref": BufferRef("null")}, "outside the limits of the copy engine"),
        ({"dims": (64, 17)}, "over 2176 bytes of a range of 2048"),
        ({"ref": BufferRef("weights", 8000, 2048)}, "weights"),
        ({"dtype": "fp13"}, "fp13"),
    ],
)
def test_an_unsound_map_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(with_maps(replace(MATRIX, **change)))
