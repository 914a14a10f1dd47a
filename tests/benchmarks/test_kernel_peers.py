"""The peers of single kernels solve the same problems; here on PyTorch's CPU backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.kernel_peers import (  # noqa: E402 (it needs torch)
    alternatives,
    epilogue_kind,
    operands,
)
from benchmarks.kernel_problems import conv_problems, memory_problems, product  # noqa: E402
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8  # noqa: E402
from nrt.errors import BuildError  # noqa: E402
from nrt.frontend.network import Network  # noqa: E402
from nrt.ir.ops import Conv, Erf, Reduce  # noqa: E402
from nrt.ir.pointwise import Builder  # noqa: E402
from nrt.problem import Problem, TensorSpec  # noqa: E402
from nrt.trial import random_inputs, relative_error  # noqa: E402

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int32": 0.0}


def _assert_same(problem: Problem, skip: str = "cuDNN") -> None:
    inputs = random_inputs(problem, np.random.default_rng())
    exact = [
        a.astype(np.float64) if s.dtype.is_float else a
        for a, s in zip(inputs, problem.inputs, strict=True)
    ]
    (expected,) = problem.op.reference(*exact)
    ran = 0
    for alternative in alternatives(problem):
        if alternative.name.startswith(skip):
            continue
        out = alternative.run(*alternative.prepare(operands(problem, inputs, "cpu")))
        assert relative_error(out.float().numpy(), expected) <= TOLERANCE[problem.y.dtype.name]
        ran += 1
    assert ran


def _convolutions(act: str, residual: bool = False, **options: Any) -> list[Problem]:
    rng = np.random.default_rng()
    groups = options.get("groups", 1)
    net = Network("one")
    x = net.relu(net.input("x", (2, 8, 7, 5)))
    weight = rng.standard_normal((8, 8 // groups, 3, 3), np.float32)
    y = net.conv2d(x, weight, rng.standard_normal(8, np.float32), **options)
    if residual:
        y = net.add(y, x)
    if act:
        y = getattr(net, act)(y)
    net.output(net.global_avg_pool(y), "y")
    return conv_problems(net.graph, "fp32")


@pytest.mark.parametrize(
    ("act", "residual", "kind"),
    [
        ("", False, "bias"),
        ("relu", False, "bias+relu"),
        ("relu6", False, "bias+relu6"),
        ("", True, "bias+residual"),
        ("relu", True, "bias+residual+relu"),
    ],
)
def test_convolutions(act: str, residual: bool, kind: str) -> None:
    (problem,) = _convolutions(act, residual, padding=1)
    assert epilogue_kind(problem) == kind
    _assert_same(problem)
    names = [(a.name, a.exact) for a in alternatives(problem)]
    fused = "cuDNN fused" if kind.endswith("+relu") else "cuDNN fused, with ReLU"
    assert names == [(fused, fused == "cuDNN fused"), ("convolution, then operations", True)]


def test_convolutions_with_groups_strides_and_uneven_pads() -> None:
    (problem,) = _convolutions("relu", groups=4, stride=2, dilation=(1, 2), padding=(2, 0, 1, 3))
    _assert_same(problem)
    assert [a.name for a in alternatives(problem)] == ["convolution, then operations"]


def test_an_epilogue_without_a_peer_is_refused() -> None:
    (problem,) = _convolutions("tanh")
    with pytest.raises(BuildError, match="no PyTorch peer for the epilogue of Conv"):
        alternatives(problem)


def test_a_prologue_has_no_peer() -> None:
    b = Builder("f")
    op = Conv(prologue=b.build(b("exp", 0)))
    x, w, y = (TensorSpec.dense(s, FP32) for s in ((1, 3, 4, 4), (5, 3, 1, 1), (1, 5, 4, 4)))
    with pytest.raises(BuildError, match="no PyTorch peer for the prologue of Conv"):
        alternatives(Problem(op, (x, w), (y,), (False, True)))


@pytest.mark.parametrize("dtype", [FP16, FP32, BF16])
def test_products(dtype: Any) -> None:
    _assert_same(product(17, 9, 33, dtype))


def test_products_of_int8_are_exact() -> None:
    problem = product(32, 16, 48, INT8)
    _assert_same(problem)
    (peer,) = alternatives(problem)
    a, b = peer.prepare(operands(problem, random_inputs(problem, np.random.default_rng()), "cpu"))
    assert (a.dtype, b.stride()) == (torch.int8, (1, 48))


def test_products_of_fp8_name_their_accumulation() -> None:
    problem = product(32, 16, 48, FP8E4M3)
    _assert_same(problem)
    names = [(p.name, p.exact) for p in alternatives(problem)]
    assert names == [
        ("torch._scaled_mm, full accumulation", True),
        ("torch._scaled_mm, fast accumulation", False),
    ]


def test_products_in_tf32_leave_the_flag_as_it_was() -> None:
    _assert_same(product(17, 9, 33, FP32, tf32=True))
    assert not torch.backends.cuda.matmul.allow_tf32
    seen = []

    def spy(a: Any, b: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return torch.mm(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "matmul", spy)
        alternatives(product(17, 9, 33, FP32, tf32=True))[0].run(torch.ones(2, 3), torch.ones(3, 2))
    assert seen == [True]
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("index", range(12))
def test_memory_bound_ops(index: int) -> None:
    _assert_same(memory_problems(FP32, 1 << 14)[index])


def test_other_ops_have_no_peer() -> None:
    spec = TensorSpec.dense((3, 5), FP32)
    with pytest.raises(BuildError, match="no PyTorch peer for Erf"):
        alternatives(Problem(Erf(), (spec,), (spec,), (False,)))
    one = TensorSpec.dense((3, 1), FP32)
    with pytest.raises(BuildError, match="no PyTorch peer for Reduce"):
        alternatives(Problem(Reduce("max", (1,)), (spec,), (one,), (False,)))
