"""Small plans for the runtime's tests, and host kernels for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    HostTensor,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    Layer,
    LiveBlock,
    Peak,
    Plan,
    ScalarArg,
    SetStep,
    Target,
)

CUBIN = b"\x7fELF" + bytes(range(200))


def layer(name: str = "add") -> Layer:
    return Layer(
        name=name,
        op="Pointwise",
        origins=("model/add", "model/relu"),
        inputs=("fp32[3,5]",),
        outputs=("fp32[3,5]",),
        precision="fp32",
        variant="cpu_add",
        config="()",
        seconds=1.5e-6,
        flops=15,
        nbytes=120,
        reason="the only one",
    )


def tensor(
    space: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    nbytes: int = 60,
    index: int = 0,
    dtype: str = "fp32",
) -> HostTensor:
    return HostTensor(BufferRef(space, offset, nbytes, index), dtype, shape, strides)


def cpu_plan(weights: np.ndarray[Any, Any]) -> Plan:
    """``y = (x.T + w).T * 2`` and ``z = x`` for x fp32[3, 5], through the arena."""
    weights = np.asarray(weights, np.float32)
    assert weights.shape == (5, 3)
    dense, turned = (5, 1), (1, 5)
    return Plan(
        name="tiny",
        target=Target("cpu", "x86_64"),
        inputs=(IoSpec("x", (3, 5), "fp32"),),
        outputs=(IoSpec("y", (3, 5), "fp32"), IoSpec("z", (3, 5), "fp32")),
        arena_bytes=512,
        weights=weights.tobytes(),
        cubins=(),
        kernels=(),
        steps=(
            SetStep(BufferRef("arena", 256, 64), 7),
            HostStep(
                "add",
                ["Add", {"alpha": 1.0, "axes": [0, 1]}],
                (),
                (tensor("input", (5, 3), turned), tensor("weights", (5, 3), (3, 1))),
                (tensor("arena", (5, 3), turned),),
                BufferRef("arena", 256, 64),
            ),
            HostStep(
                "scale",
                ["Scale", {}],
                (2, ("fast", 1)),
                (tensor("arena", (3, 5), dense),),
                (tensor("output", (3, 5), dense),),
                BufferRef("null"),
            ),
            CopyStep(BufferRef("input", 0, 60), BufferRef("output", 0, 60, 1)),
        ),
        layers=(layer(),),
        ops_before={"Add": 1, "Mul": 1},
        ops_after={"Pointwise": 1},
        tolerance=1e-5,
        versions={"nrt": "0.1.0", "numpy": "2.0"},
    )


def cuda_plan() -> Plan:
    """Two launches on two streams; its binary is none."""
    block = BufferRef("arena", 0, 256)
    return Plan(
        name="tiny-cuda",
        target=Target("cuda", "sm_90a", "NVIDIA H200"),
        inputs=(IoSpec("x", (8, 8), "fp16"),),
        outputs=(IoSpec("y", (8, 8), "fp16"),),
        arena_bytes=1024,
        weights=bytes(range(256)) * 2,
        cubins=(CUBIN, CUBIN + b"more"),
        kernels=(KernelRef(0, "first"), KernelRef(1, "second")),
        steps=(
            ForkStep(0, (1,)),
            LaunchStep(
                0,
                (4, 1, 1),
                (64, 2, 1),
                (BufferRef("input", 0, 128), block, ScalarArg(7, "u32"), ScalarArg(0.5, "f32")),
                shared=100 * 1024,
                cluster=(2, 1, 1),
                stream=1,
            ),
            JoinStep(0, (1,)),
            LaunchStep(
                1,
                (1, 1, 1),
                (32, 1, 1),
                (
                    block,
                    BufferRef("weights", 256, 256),
                    BufferRef("null"),
                    BufferRef("output", 0, 128),
                ),
                read_only=(0, 1),
            ),
        ),
        layers=(layer(),),
        streams=2,
        peak=Peak(512, 0, (LiveBlock("x", 256), LiveBlock("add", 100))),
    )


def bind(variant: str, problem: Any, config: Any) -> Any:
    """Host kernels of `cpu_plan`."""
    if variant == "add":
        assert problem == ["Add", {"alpha": 1.0, "axes": [0, 1]}]

        def add(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
            assert workspace.nbytes == 64
            assert workspace.ctypes.data % 64 == 0
            outputs[0][...] = inputs[0] + inputs[1]

        return add
    assert variant == "scale"

    def scale(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
        assert workspace.nbytes == 0
        np.multiply(inputs[0], config[0], out=outputs[0])

    return scale
