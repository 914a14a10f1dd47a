"""The problems that single kernels are measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import kernel_problems
from benchmarks.kernel_problems import (
    GROUPS,
    conv_problems,
    group_precision,
    group_problems,
    memory_problems,
    product,
    products_of,
    resnext50,
)
from nrt.dtypes import DTYPES, FP8E4M3, FP16, FP32, INT8, INT32, DType
from nrt.errors import InputError
from nrt.frontend.network import Network
from nrt.ir.ops import Conv, MatMul
from nrt.problem import Problem
from nrt.work import flops_of, precision_of


def _no_model(name: str, batch: int) -> Any:
    raise AssertionError(f"{name} at {batch} was asked for")


def _network() -> Network:
    rng = np.random.default_rng()
    net = Network("small")
    x = net.input("x", (2, 16, 6, 5))
    weight = rng.standard_normal((16, 16, 3, 3), np.float32)
    for _ in range(2):  # equal layers
        x = net.relu(net.conv2d(x, weight, rng.standard_normal(16, np.float32), padding=1))
    y = net.conv2d(x, rng.standard_normal((24, 16, 1, 1), np.float32))
    z = net.conv2d(x, rng.standard_normal((24, 16, 1, 1), np.float32), stride=2)
    net.output(net.global_avg_pool(y), "y")
    net.output(net.global_avg_pool(z), "z")
    return net


def _residual() -> Network:
    rng = np.random.default_rng()
    net = Network("residual")
    x = net.input("x", (2, 16, 6, 5))

    def weight(k: int, size: int) -> Any:
        return rng.standard_normal((k, 16, size, size), np.float32)

    y = net.relu(net.conv2d(x, weight(16, 3), rng.standard_normal(16, np.float32), padding=1))
    y = net.relu(net.add(net.conv2d(y, weight(16, 1), rng.standard_normal(16, np.float32)), y))
    net.output(net.relu(net.conv2d(y, weight(24, 1), rng.standard_normal(24, np.float32))), "y")
    return net


def test_convolutions_are_distinct_fused_and_channels_last() -> None:
    problems = conv_problems(_network().graph, "fp16")
    assert len(problems) == 3
    first = problems[0]
    assert isinstance(first.op, Conv)
    assert first.op.epilogue is not None
    assert first.inputs[0].dtype is FP16
    assert first.inputs[0].is_nhwc
    assert first.constants[:2] == (False, True)


def test_convolutions_of_int8_read_and_store_int8() -> None:
    problems = conv_problems(_residual().graph, "int8")
    types = [(p.inputs[0].dtype, p.y.dtype) for p in problems]
    # The last layer gives the result: it reads and computes floats.
    assert types == [(INT8, INT8), (INT8, FP16), (FP16, FP32)]
    assert [p.op.epilogue is not None for p in problems if isinstance(p.op, Conv)] == [True] * 3
    second = problems[1]
    assert [s.dtype for s in second.inputs[2:]] == [FP32, FP32, INT8]
    assert second.inputs[4].shape == second.y.shape


def test_ops_of_floats_have_no_int8() -> None:
    with pytest.raises(InputError, match="group memory: its ops have no int8; give a float type"):
        group_problems("memory", 0, "int8", _no_model)
    assert {p.inputs[0].dtype for p in group_problems("gemm", 0, "int8", _no_model)} == {INT8}


def test_products_are_those_of_convolutions_that_are_products() -> None:
    (problem,) = products_of(conv_problems(_network().graph, "fp32"), FP32)
    assert isinstance(problem.op, MatMul)
    assert [s.shape for s in problem.inputs] == [(60, 16), (16, 24)]
    assert flops_of(problem) == 2 * 60 * 16 * 24


def test_products_of_groups() -> None:
    shapes = [p.y.shape for p in group_problems("gemm", 0, "fp16", _no_model)]
    assert shapes == [(n, n) for n in (1024, 2048, 4096, 8192)]
    bert = group_problems("gemm-bert", 3, "fp32", _no_model)
    assert [(p.inputs[0].shape, p.y.shape[1]) for p in bert] == [
        ((384, 768), 768),
        ((384, 768), 3072),
        ((384, 3072), 768),
    ]
    assert {p.y.dtype for p in bert} == {FP32}


@pytest.mark.parametrize(
    ("group", "operands", "result", "precision"),
    [
        ("gemm-int8", INT8, INT32, "int8"),
        ("gemm-fp8", FP8E4M3, FP16, "fp8"),
        ("gemm-tf32", FP32, FP32, "tf32"),
    ],
)
def test_narrow_products(group: str, operands: DType, result: DType, precision: str) -> None:
    problems = group_problems(group, 0, "bf16", _no_model)
    assert [p.y.shape for p in problems] == [(n, n) for n in (1024, 2048, 4096, 8192)]
    assert {s.dtype for p in problems for s in p.inputs} == {operands}
    assert {p.y.dtype for p in problems} == {result}
    assert {p.op for p in problems} == {MatMul(tf32=group == "gemm-tf32")}
    assert group_precision(group, "bf16") == precision == precision_of(problems[0])
    assert group_precision("gemm", "bf16") == "bf16"


def test_resnext_has_its_grouped_convolutions() -> None:
    problems = group_problems("resnext50", 2, "fp16", _no_model)
    grouped = [p for p in problems if isinstance(p.op, Conv) and p.op.groups == 32]
    # The first of a stage may read a piece of what siblings computed: the same sizes, with gaps.
    got = list(dict.fromkeys((p.inputs[0].shape[1:], p.y.shape[1:]) for p in grouped))
    assert got == [
        ((128, 56, 56), (128, 56, 56)),
        ((256, 56, 56), (256, 28, 28)),
        ((256, 28, 28), (256, 28, 28)),
        ((512, 28, 28), (512, 14, 14)),
        ((512, 14, 14), (512, 14, 14)),
        ((1024, 14, 14), (1024, 7, 7)),
        ((1024, 7, 7), (1024, 7, 7)),
    ]
    residual = [p for p in problems if any(s.shape == p.y.shape for s in p.inputs[2:])]
    assert {p.y.shape for p in residual} == {
        (2, 256, 56, 56),
        (2, 512, 28, 28),
        (2, 1024, 14, 14),
        (2, 2048, 7, 7),
    }


def test_resnext_counts_what_the_paper_counts() -> None:
    macs = 0
    for node in resnext50(1).graph.nodes:
        if isinstance(node.op, Conv):
            weight = node.inputs[1].shape
            macs += int(np.prod(node.output.shape)) * int(np.prod(weight[1:]))
    # 4.2e9 in the paper with the stem (0.118e9) and the last layer (0.002e9).
    assert 4.0e9 < macs < 4.2e9


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_memory_bound_problems_move_what_they_should(dtype: Any) -> None:
    elements = 1 << 16
    problems = memory_problems(dtype, elements)
    assert len(set(problems)) == len(problems) == 12
    for problem in problems:
        assert isinstance(problem, Problem)
        assert problem.inputs[0].size >= 0.9 * elements
        assert problem.y.type == problem.op.infer(*(s.type for s in problem.inputs))[0]
        assert problem.y.dtype in DTYPES


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(InputError, match="no group 'x'; expected one of gemm, memory"):
        group_problems("x", 1, "fp16", _no_model)


def test_networks_come_from_the_loader() -> None:
    assert set(kernel_problems.ZOO_GROUPS) <= set(GROUPS)
    with pytest.raises(AssertionError, match="inception_v3 at 7 was asked for"):
        group_problems("inception_v3", 7, "fp16", _no_model)


def test_a_product_holds_its_weights_as_constants() -> None:
    problem = product(3, 5, 7, FP16)
    assert problem.constants == (False, True)
    assert [s.shape for s in (*problem.inputs, problem.y)] == [(3, 7), (7, 5), (3, 5)]
