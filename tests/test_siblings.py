"""Sibling fusion end to end: on the CPU, as a CUDA build, and which kernels take its pieces."""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import pytest

import nrt
from nrt.cuda_kernels.device import device_for_arch
from nrt.cuda_kernels.registry import variants_for
from nrt.dtypes import FP16, FP32
from nrt.frontend.layer import Tensor
from nrt.ir.evaluate import evaluate
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Conv,
    LayerNormalization,
    MatMul,
    MaxPool,
    Reduce,
    Relu,
    Softmax,
)
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.problem import Problem, TensorSpec
from nrt.trial import relative_error

LIMIT = {"fp32": 1e-5, "fp16": 5e-3}


def network(batch: int = 1) -> nrt.Network:
    """A block of GoogLeNet's, one that widens as ResNet's first, and a head of attention."""
    rng = np.random.default_rng(secrets.randbits(32))
    net = nrt.Network("siblings")

    def conv(x: Tensor, k: int, size: int = 1) -> Tensor:
        c = x.shape[1]
        scale = np.float32(1 / np.sqrt(c * size * size))
        weight = rng.standard_normal((k, c, size, size), dtype=np.float32) * scale
        bias = rng.standard_normal(k, dtype=np.float32)
        return net.conv2d(x, weight, bias, padding=size // 2)

    x = net.relu(conv(net.input("x", (batch, 8, 6, 5)), 16))
    x = net.concat(
        [
            net.relu(conv(x, 24)),
            net.relu(conv(net.relu(conv(x, 16)), 8, 3)),
            net.relu(conv(net.relu(conv(x, 8)), 16, 3)),
        ],
        axis=1,
    )
    x = net.relu(net.add(conv(net.relu(conv(x, 16)), 32, 3), conv(x, 32)))
    tokens = net.transpose(net.reshape(x, (batch, 32, 30)), (0, 2, 1))
    heads = [
        net.matmul(tokens, rng.standard_normal((32, 16), dtype=np.float32) / np.float32(6))
        for _ in range(3)
    ]
    scores = net.softmax(net.matmul(heads[0], net.transpose(heads[1], (0, 2, 1))), axis=-1)
    net.output(net.matmul(scores, heads[2]), "y")
    return net


def data(net: nrt.Network) -> dict[str, np.ndarray]:
    (x,) = net.graph.inputs
    rng = np.random.default_rng(secrets.randbits(32))
    return {"x": rng.standard_normal(x.shape, dtype=np.float32)}


def assert_near(net: nrt.Network, engine: nrt.Engine, limit: float) -> None:
    feeds = data(net)
    wanted = evaluate(net.graph, feeds)["y"]
    assert relative_error(engine.run(feeds)["y"], wanted) <= limit


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 2])
def test_on_the_cpu(precision: str, batch: int) -> None:
    net = network(batch)
    engine = nrt.compile(net, target="cpu", precision=precision, opt_level=0)
    assert_near(net, engine, LIMIT[precision])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_on_the_gpu(precision: str, batch: int) -> None:
    net = network(batch)
    engine = nrt.compile(net, target="cuda", precision=precision, opt_level=1)
    assert_near(net, engine, LIMIT[precision])


# -- which kernels read and write pieces -----------------------------------------------------------


def piece(spec: TensorSpec, dim: int) -> TensorSpec:
    """``spec`` as a piece of a tensor with 24 more elements along ``dim``, its innermost."""
    strides = tuple(
        s if d == dim or s == 1 else s // spec.shape[dim] * (spec.shape[dim] + 24)
        for d, s in enumerate(spec.strides)
    )
    return TensorSpec(spec.shape, spec.dtype, strides)


_b = Builder("fff")
RESIDUAL = _b.build(_b("add", _b("add", 0, 1), 2))
IMAGE = TensorSpec.dense((2, 64, 12, 10), FP16, NHWC)
ROWS = TensorSpec.dense((2, 24, 96), FP16)


def image(op: Op, *weights: TensorSpec, residual: bool = False) -> Problem:
    inputs = (IMAGE, *weights)
    y = op.infer(*(t.type for t in inputs), *((IMAGE.type,) if residual else ()))[0]
    out = TensorSpec.dense(y.shape, y.dtype, NHWC if len(y.shape) == 4 else None)
    extra = (IMAGE,) if residual else ()
    constants = (False, *(True for _ in weights), *(False for _ in extra))
    return Problem(op, (*inputs, *extra), (out,), constants)


def rows(op: Op, *others: TensorSpec, constants: tuple[bool, ...] = ()) -> Problem:
    inputs = (ROWS, *others)
    y = op.infer(*(t.type for t in inputs))[0]
    return Problem(op, inputs, (TensorSpec.dense(y.shape, y.dtype),), (False, *constants))


WEIGHT = TensorSpec.dense((64, 64, 1, 1), FP16)
VECTOR = TensorSpec.dense((96,), FP32)
PROBLEMS = [
    image(Conv(), WEIGHT),
    image(Conv(pads=(1, 1, 1, 1)), TensorSpec.dense((64, 64, 3, 3), FP16)),
    image(Conv(epilogue=RESIDUAL), WEIGHT, TensorSpec.dense((64, 1, 1), FP32), residual=True),
    image(Conv(pads=(1, 1, 1, 1), groups=64), TensorSpec.dense((64, 1, 3, 3), FP16)),
    image(MaxPool((3, 3), (1, 1), (1, 1, 1, 1))),
    image(AveragePool((3, 3), (1, 1), (1, 1, 1, 1))),
    image(Reduce("mean", (2, 3))),
    image(Relu()),
    rows(MatMul(), TensorSpec.dense((96, 64), FP16), constants=(True,)),
    rows(MatMul(trans_b=False), TensorSpec.dense((2, 96, 24), FP16), constants=(False,)),
    rows(Softmax()),
    rows(LayerNormalization(), VECTOR, VECTOR, constants=(True, True)),
    rows(Add(), ROWS, constants=(False,)),
]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernels_take_pieces_as_they_take_whole_tensors(problem: Problem, arch: str) -> None:
    device = device_for_arch(arch)
    in_pieces = replace(
        problem,
        inputs=tuple(
            t if fixed else piece(t, t.strides.index(1))
            for t, fixed in zip(problem.inputs, problem.constants, strict=True)
        ),
    )
    assert in_pieces != problem
    found = dict(variants_for(in_pieces, device))
    for variant, refusal in variants_for(problem, device):
        if refusal is None:
            assert found[variant] is None, variant.name
