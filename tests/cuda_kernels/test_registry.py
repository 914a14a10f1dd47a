"""The table of GPU variants: names, families, and that every family has its reference."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from nrt.cuda_kernels.compiler import compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.registry import VARIANTS, variants_for
from nrt.cuda_kernels.variant import In, Null, Out, Scalar, Variant, Work
from nrt.dtypes import BF16, FP16, FP32, INT64
from nrt.ir import ops as ir
from nrt.ir.op import Op
from nrt.ir.ops import OPS
from nrt.ir.ops.elementwise import Elementwise
from nrt.problem import Problem

from .harness import problem

# Views, folded at build time, or turned into a Reformat: no kernel ever sees them.
NEVER_KERNELS = {
    ir.Reshape, ir.Transpose, ir.Concat, ir.Split, ir.Expand, ir.Identity, ir.Dropout,
}  # fmt: skip


def test_names_are_unique_and_well_formed() -> None:
    names = [v.name for v in VARIANTS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", n) for n in names)
    assert all(isinstance(v, Variant) and v.ops for v in VARIANTS)


def test_every_op_that_reaches_kernels_has_one_reference() -> None:
    references: dict[type[Op], list[str]] = {op: [] for op in OPS if op not in NEVER_KERNELS}
    for variant in VARIANTS:
        for op in variant.ops:
            if variant.reference and op in references:
                references[op].append(variant.name)
    missing = [op.__name__ for op, names in references.items() if not names]
    assert missing == []
    several = {op.__name__: names for op, names in references.items() if len(names) > 1}
    assert several == {}


SAMPLES = [
    problem(ir.Conv(pads=(1, 1, 1, 1)), [(1, 5, 7, 9), (6, 5, 3, 3)], FP32, constants=(1,)),
    problem(ir.Conv(groups=6), [(1, 6, 7, 9), (6, 1, 3, 3)], FP16, constants=(1,)),
    problem(ir.Conv(), [(1, 16, 7, 9), (24, 16, 1, 1)], FP16, order=(0, 2, 3, 1), constants=(1,)),
    problem(ir.ConvTranspose((2, 2)), [(1, 5, 7, 9), (5, 4, 2, 2)], FP32, constants=(1,)),
    problem(ir.MatMul(), [(3, 17, 40), (40, 33)], FP32),
    problem(ir.MatMul(), [(64, 64), (64, 72)], FP16, constants=(1,)),
    problem(ir.MatMul(), [(1, 130), (130, 70)], BF16),
    problem(ir.Relu(), [(3, 5, 7)], FP16),
    problem(ir.Add(), [(3, 5, 7), (5, 1)], FP32),
    problem(ir.Reformat(FP16), [(2, 5, 7, 3)], FP32),
    problem(ir.Slice((4, 0), (-1, 7), (-2, 1)), [(5, 7)], FP32),
    problem(ir.MaxPool((3, 3), (2, 2), (1, 1, 1, 1)), [(1, 5, 9, 7)], FP32),
    problem(ir.Reduce("mean", (2, 3)), [(2, 5, 9, 7)], FP16),
    problem(ir.Softmax(), [(6, 1000)], FP32),
    problem(ir.LayerNormalization(), [(6, 100), (100,), (100,)], FP16),
    problem(ir.LRN(5), [(1, 7, 3, 3)], FP32),
    problem(ir.AbsHistogram(), [(3, 5, 7)], FP32),
    problem(ir.Gather(), [(9, 5), (4,)], FP16, dtypes={1: INT64}),
    problem(ir.Pad((0, 1, 2, 0)), [(3, 5)], FP32),
    problem(ir.Resize((1, 3, 8, 10), (1.0, 1.0, 2.0, 2.0)), [(1, 3, 4, 5)], FP32),
]


@pytest.mark.parametrize("arch", ["sm_75", "sm_87", "sm_90a"])
@pytest.mark.parametrize("p", SAMPLES, ids=str)
def test_supported_variants_configure_and_emit(p: Problem, arch: str) -> None:
    """What every variant owes the tuner, on a problem of each family."""
    device = ARCHS[arch]
    found = variants_for(p, device)
    assert found
    assert {type(p.op)} <= {op for v, _ in found for op in v.ops}
    supported = [v for v, refusal in found if refusal is None]
    if p.y.dtype is BF16 and device.cc < (8, 0):
        assert supported == []
        return
    assert any(v.reference for v in supported), f"no reference for {p}"
    for variant, refusal in found:
        if refusal is not None:
            assert refusal.reason
            continue
        configs = list(variant.configs(p, device))
        assert configs, f"{variant.name} supports {p} and has no configuration"
        assert len(set(configs)) == len(configs)
        for config in configs:
            assert 0 < variant.estimate(p, config, device) < 1
            _check(variant, p, config, device)


def _check(variant: Variant, p: Problem, config: Any, device: Any) -> None:
    emission = variant.emit(p, config, device)
    assert variant.emit(p, config, device) == emission, "emit is not deterministic"
    assert hash(config) == hash(tuple(config))
    for launch in emission.launches:
        assert min(launch.grid) >= 1
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        assert 1 <= threads <= launch.kernel.threads <= 1024
        assert launch.shared <= device.shared_per_block
        hash(launch.kernel)
        assert launch.kernel.factory.startswith("nrt.cuda_kernels.")
        for arg in launch.args:
            if isinstance(arg, In):
                assert 0 <= arg.slot < len(p.inputs)
                if not p.constants[arg.slot]:
                    assert 0 <= arg.offset <= p.inputs[arg.slot].nbytes
            elif isinstance(arg, Out):
                assert 0 <= arg.slot < len(p.outputs)
                assert 0 <= arg.offset <= p.outputs[arg.slot].nbytes
            elif isinstance(arg, Work):
                assert 0 <= arg.offset <= emission.workspace
            elif isinstance(arg, Scalar):
                if arg.ctype == "u32":
                    assert isinstance(arg.value, int)
                    assert 0 <= arg.value < 2**32
            else:
                assert isinstance(arg, Null) or fields(arg)


BF16_ON_TURING = [
    (problem(ir.Relu(), [(3, 5, 7)], BF16), False),
    (problem(ir.Reformat(BF16), [(2, 5, 7, 3)], FP32), False),
    (problem(ir.Softmax(), [(6, 1000)], BF16), False),
    (problem(ir.MaxPool((2, 2), (2, 2), (0, 0, 0, 0)), [(1, 5, 9, 7)], BF16), False),
    (problem(ir.Reformat(FP32), [(2, 5, 7, 3)], BF16), True),
    (problem(ir.Reformat(BF16), [(2, 5, 7, 3)], BF16), True),
    (problem(ir.Slice((4, 0), (-1, 7), (-2, 1)), [(5, 7)], BF16), True),
    (problem(ir.Gather(), [(9, 5), (4,)], BF16, dtypes={1: INT64}), True),
    (problem(ir.Pad((0, 1, 2, 0)), [(3, 5)], BF16), True),
]


@pytest.mark.parametrize(("p", "fits"), BF16_ON_TURING, ids=str)
def test_sm_75_moves_bf16_and_does_not_compute_it(p: Problem, fits: bool) -> None:
    device = ARCHS["sm_75"]
    found = variants_for(p, device)
    assert any(refusal is None for _, refusal in found) == fits
    for variant, refusal in found:
        if refusal is None:
            config = variant.configs(p, device)[0]
            for launch in variant.emit(p, config, device).launches:
                compile_kernel(launch.kernel, device, cache=False)
        elif not fits:
            assert refusal.reason == "sm_75 has no bf16 conversion, expected sm_80 or later"


def test_elementwise_ops_share_their_variants() -> None:
    classes = {op for op in OPS if issubclass(op, Elementwise)}
    for variant in VARIANTS:
        if variant.reference and classes & set(variant.ops):
            assert classes <= set(variant.ops)
