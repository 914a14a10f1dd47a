"""What single kernels are measured on: products, the convolutions of networks, memory-bound ops.

Convolutions are those that nrt itself is left with: the model goes through the pipeline and the
lowering, and each distinct convolution comes out with its layout and its fused epilogue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nrt.dtypes import FP8E4M3, FP16, FP32, INT8, DType, dtype_from_name
from nrt.errors import InputError
from nrt.frontend.layer import Tensor
from nrt.frontend.network import Network
from nrt.frontend.onnx_model import import_model
from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Conv,
    Gelu,
    LayerNormalization,
    MatMul,
    MaxPool,
    Reduce,
    Reformat,
    Relu,
    Softmax,
)
from nrt.lowering import lower
from nrt.passes.base import run_pipeline
from nrt.passes.choice import ChoicePass
from nrt.passes.pipeline import PASSES, PipelineOptions, pipeline
from nrt.problem import Problem, TensorSpec
from nrt.quantization.calibration import Calibration, MethodRules, TensorRange

if TYPE_CHECKING:
    import onnx

__all__ = [
    "BATCHED",
    "FIXED",
    "GROUPS",
    "NARROW",
    "RESNEXT50",
    "SQUARES",
    "conv_problems",
    "group_precision",
    "group_problems",
    "memory_problems",
    "product",
    "products_of",
    "resnext50",
]

SQUARES = (1024, 2048, 4096, 8192)
BERT_TOKENS = 128
BERT_PRODUCTS = ((768, 768), (768, 3072), (3072, 768))
"""(inner, columns) of BERT-base's products with weights; rows are the tokens of a batch."""
RESNEXT50 = (
    # blocks, channels of the grouped 3x3, channels out, first stride, image side coming in
    (3, 128, 256, 1, 56),
    (4, 256, 512, 2, 56),
    (6, 512, 1024, 2, 28),
    (3, 1024, 2048, 2, 14),
)
"""ResNeXt-50 32x4d (Xie et al. 2017) behind its stem: stages of bottlenecks."""
RESNEXT_GROUPS = 32
NHWC = (0, 2, 3, 1)

Loader = Callable[[str, int], "onnx.ModelProto"]

ZOO_GROUPS = ("resnet50", "mobilenet_v2", "inception_v3")
NARROW: Mapping[str, tuple[DType, Mapping[str, Any]]] = {
    "gemm-int8": (INT8, {}),
    "gemm-fp8": (FP8E4M3, {}),
    "gemm-tf32": (FP32, {"tf32": True}),
}
"""Square products in a type of their own, whatever ``--precision`` says: operands, attributes."""
FIXED = ("gemm", "memory")
BATCHED = ("gemm-bert", "gemm-resnet50", *ZOO_GROUPS, "resnext50")
GROUPS = (*FIXED, *NARROW, *BATCHED)


def group_precision(group: str, precision: str) -> str:
    """What ``group`` computes in when ``precision`` is asked for."""
    return group.removeprefix("gemm-") if group in NARROW else precision


def group_problems(group: str, batch: int, precision: str, load: Loader) -> list[Problem]:
    """The distinct problems of ``group``.

    Args:
        group: one of `GROUPS`.
        batch: images or sequences; of no effect on `FIXED` and `NARROW` groups.
        precision: element type; of no effect on `NARROW` groups. Layers that do not take int8 are
            fp16 beside those that do.
        load: (name, batch) -> model, for the groups that are models.

    Raises:
        InputError: there is no such group, or its ops compute with floats alone.
    """
    if group in NARROW:
        narrow, attributes = NARROW[group]
        return [product(n, n, n, narrow, **attributes) for n in SQUARES]
    dtype = dtype_from_name(precision)
    if group == "gemm":
        return [product(n, n, n, dtype) for n in SQUARES]
    if group == "gemm-bert":
        rows = batch * BERT_TOKENS
        return [product(rows, n, k, dtype) for k, n in BERT_PRODUCTS]
    if group == "memory":
        if not dtype.is_float:
            raise InputError(f"group memory: its ops have no {precision}; give a float type")
        return memory_problems(dtype)
    if group == "gemm-resnet50":
        return products_of(conv_problems(_network(load("resnet50", batch)), precision), dtype)
    if group == "resnext50":
        return conv_problems(resnext50(batch).graph, precision)
    if group in ZOO_GROUPS:
        return conv_problems(_network(load(group, batch)), precision)
    raise InputError(f"no group {group!r}; expected one of {', '.join(GROUPS)}")


_BY_TIME = frozenset(step.name for step in PASSES if issubclass(step, ChoicePass))


def _network(model: onnx.ModelProto) -> Graph:
    return import_model(model)


def conv_problems(graph: Graph, precision: str) -> list[Problem]:
    """The distinct convolutions of ``graph`` in ``precision``, in its order.

    Fusions that a build decides by time are left out: they make other problems of a network's own
    convolutions, which peers do not solve in one kernel. The ranges that int8 needs are made up:
    times do not depend on them.
    """
    options = PipelineOptions(precision=frozenset({precision}), disabled=_BY_TIME)
    if precision == "int8":
        permitted = frozenset({"int8", "fp16"})
        options = replace(options, precision=permitted, calibration=_assumed_ranges())
    tasks = lower(run_pipeline(graph, pipeline(options)).graph).tasks
    return list(dict.fromkeys(t.problem for t in tasks if isinstance(t.problem.op, Conv)))


def _assumed_ranges() -> Calibration:
    """The same range for whatever tensor is asked for."""
    entry = TensorRange("any", "minmax", 4.0, -4.0, 4.0, 1, 0, 0.0, None)
    return Calibration("", "", MethodRules("minmax"), 1, defaultdict(lambda: entry))


def product(rows: int, columns: int, inner: int, dtype: DType, **attributes: Any) -> Problem:
    """``a[rows, inner] @ b[inner, columns]``; b holds weights, known when the plan is built."""
    a, b = TensorSpec.dense((rows, inner), dtype), TensorSpec.dense((inner, columns), dtype)
    op = MatMul(**attributes)
    (y,) = op.infer(a.type, b.type)
    return Problem(op, (a, b), (TensorSpec.dense(y.shape, y.dtype),), (False, True))


def products_of(convolutions: Iterable[Problem], dtype: DType) -> list[Problem]:
    """The plain matrix products that 1x1 convolutions with stride 1 are."""
    found = []
    for problem in convolutions:
        x, w = problem.inputs[:2]
        assert isinstance(problem.op, Conv)
        if w.shape[2:] == (1, 1) and set(problem.op.strides) == {1} and problem.op.groups == 1:
            rows = x.shape[0] * x.shape[2] * x.shape[3]
            found.append(product(rows, w.shape[0], w.shape[1], dtype))
    return list(dict.fromkeys(found))


def resnext50(batch: int) -> Network:
    """The body of ResNeXt-50 32x4d; its weights are random, batch norms taken to be folded."""
    net = Network("resnext50")
    rng = np.random.default_rng(0)

    def conv(x: Tensor, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Tensor:
        inner = x.shape[1] // groups
        shape = (channels, inner, kernel, kernel)
        weight = rng.standard_normal(shape, np.float32) / np.sqrt(inner * kernel**2)
        bias = rng.standard_normal(channels, np.float32)
        return net.conv2d(
            x,
            weight.astype(np.float32),
            bias,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
        )

    x = net.input("x", (batch, 64, 56, 56))
    for blocks, width, channels, first, _ in RESNEXT50:
        for index in range(blocks):
            stride = first if index == 0 else 1
            shortcut = conv(x, channels, 1, stride) if index == 0 else x
            y = net.relu(conv(x, width, 1))
            y = net.relu(conv(y, width, 3, stride, RESNEXT_GROUPS))
            x = net.relu(net.add(conv(y, channels, 1), shortcut))
    net.output(net.global_avg_pool(x), "y")
    return net


def memory_problems(dtype: DType, elements: int = 1 << 25) -> list[Problem]:
    """Ops that wait for memory, on tensors of about ``elements``: far above a GPU's L2 cache.

    Args:
        dtype: of the tensors.
        elements: at least 16384; a test takes few.
    """
    other = FP32 if dtype is not FP32 else FP16
    images = max(1, round(elements / (64 * 56 * 56)))
    image = TensorSpec.dense((images, 64, 56, 56), dtype, NHWC)
    plain = TensorSpec.dense(image.shape, dtype)
    flat = TensorSpec.dense((elements,), dtype)
    rows = max(1, elements // 768)
    tokens = TensorSpec.dense((rows, 768), dtype)
    scores = TensorSpec.dense((max(1, elements // 1024), 1024), dtype)
    side = max(64, int(elements**0.5) // 64 * 64)
    scale = TensorSpec.dense((768,), dtype)
    return [
        _solve(Relu(), flat),
        _solve(Add(), flat, flat),
        _solve(Gelu(), flat),
        _solve(MaxPool((3, 3), (2, 2), (1, 1, 1, 1)), image, order=NHWC),
        _solve(AveragePool((2, 2), (2, 2), (0, 0, 0, 0)), image, order=NHWC),
        _solve(Reduce("mean", (2, 3)), image, order=NHWC),
        _solve(Softmax(), scores),
        _solve(LayerNormalization(), tokens, scale, scale, constants=(1, 2)),
        _solve(Reformat(dtype), plain, order=NHWC),
        _solve(Reformat(dtype), image),
        _solve(Reformat(dtype), TensorSpec.dense((side, side), dtype), order=(1, 0)),
        _solve(Reformat(other), flat),
    ]


def _solve(
    op: Op,
    *inputs: TensorSpec,
    order: tuple[int, ...] | None = None,
    constants: tuple[int, ...] = (),
) -> Problem:
    """``op`` on ``inputs``, its output dense in ``order``."""
    (kind,) = op.infer(*(spec.type for spec in inputs))
    output = TensorSpec.dense(kind.shape, kind.dtype, order)
    flags = tuple(slot in constants for slot in range(len(inputs)))
    return Problem(op, inputs, (output,), flags)
