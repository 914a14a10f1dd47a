"""The peers of a single kernel: cuBLAS, cuDNN and PyTorch's own kernels, through PyTorch.

A problem has several alternatives; the fastest one counts. PyTorch reaches cuDNN's fused
convolutions only with a ReLU behind the bias: for another epilogue the one with the ReLU stands in,
since it does at least as much, beside the convolution with separate operations behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

from benchmarks.torch_clock import precision_of_products
from nrt.dtypes import FP8E4M3, INT8
from nrt.errors import BuildError
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
from nrt.problem import Problem, TensorSpec

__all__ = ["Alternative", "alternatives", "epilogue_kind", "operands"]

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = list[torch.Tensor]
_TYPES = {
    "fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8,
    "int32": torch.int32, "fp8e4m3": torch.float8_e4m3fn,
}  # fmt: skip


@dataclass(frozen=True)
class Alternative:
    """One way to solve a problem.

    Attributes:
        name: what a table shows.
        run: operands -> output.
        exact: the output is the problem's; else only the work is at least the same.
        prepare: puts the operands in the order in memory that it likes best.
    """

    name: str
    run: Callable[..., torch.Tensor]
    exact: bool = True
    prepare: Callable[[Tensors], Tensors] = list


def operands(problem: Problem, arrays: Sequence[Array], device: str) -> Tensors:
    """``arrays`` (logical order) as tensors in the problem's order in memory, biases as vectors.

    Biases take the type of the first input: PyTorch mixes no types here.
    """
    tensors = []
    for slot, (array, spec) in enumerate(zip(arrays, problem.inputs, strict=True)):
        # Through fp32: NumPy has no bf16 that PyTorch takes.
        tensor = torch.from_numpy(np.asarray(array, np.float32))
        kind = _TYPES[(problem.inputs[0] if _is_bias(problem, slot) else spec).dtype.name]
        tensor = tensor.to(device=device, dtype=kind)
        if _is_bias(problem, slot):
            tensors.append(tensor.reshape(-1))
        elif isinstance(problem.op, Conv) and len(spec.shape) == 4:
            tensors.append(tensor.contiguous(memory_format=torch.channels_last))
        else:
            tensors.append(_laid_out(tensor, spec))
    return tensors


def _laid_out(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    if len(spec.shape) == 4 and spec.is_nhwc:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def _is_bias(problem: Problem, slot: int) -> bool:
    if not isinstance(problem.op, Conv) or slot < 2:
        return False
    return problem.inputs[slot].size == problem.y.shape[1] != problem.y.size


def alternatives(problem: Problem) -> list[Alternative]:
    """Every way in which PyTorch solves ``problem``.

    Raises:
        BuildError: none is known.
    """
    op = problem.op
    if isinstance(op, Conv):
        return _convolutions(problem)
    if isinstance(op, MatMul) and op.epilogue is None and not (op.trans_a or op.trans_b):
        return _products(problem)
    for kind, make in _PLAIN.items():
        if type(op) is kind:
            return [make(problem)]
    raise BuildError(f"no PyTorch peer for {problem}; add one to benchmarks/kernel_peers.py")


# -- matrix products -----------------------------------------------------------------------------


def _transposed(tensors: Tensors) -> Tensors:
    """The weights with columns adjacent in memory, as cuBLAS takes int8 and fp8."""
    return [tensors[0], tensors[1].mT.contiguous().mT]


def _products(problem: Problem) -> list[Alternative]:
    op, operands = problem.op, problem.inputs[0].dtype
    assert isinstance(op, MatMul)
    if operands is INT8:
        return [Alternative("torch._int_mm", torch._int_mm, prepare=_transposed)]
    if operands is FP8E4M3:
        return [_scaled(problem, fast) for fast in (False, True)]
    multiply, name = torch.matmul, "torch.matmul"
    if op.tf32:
        multiply, name = _matmul_in_tf32, "torch.matmul, tf32"
    return [
        Alternative(name, multiply),
        Alternative(f"{name}, weights transposed", multiply, prepare=_transposed),
    ]


def _matmul_in_tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # The flag counts when the product is captured; other products of the run keep theirs.
    with precision_of_products("tf32"):
        return torch.matmul(a, b)


def _scaled(problem: Problem, fast: bool) -> Alternative:
    """cuBLAS's fp8 product with scales of 1; ``fast`` accumulation drops bits of the sum."""

    def run(a: torch.Tensor, b: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> Any:
        return torch._scaled_mm(
            a, b, scale_a=one, scale_b=other, out_dtype=_TYPES[problem.y.dtype.name],
            use_fast_accum=fast,
        )  # fmt: skip

    def prepare(tensors: Tensors) -> Tensors:
        scales = [torch.ones((), device=tensors[0].device) for _ in range(2)]
        return [*_transposed(tensors), *scales]

    name = f"torch._scaled_mm, {'fast' if fast else 'full'} accumulation"
    return Alternative(name, run, exact=not fast, prepare=prepare)


# -- convolutions --------------------------------------------------------------------------------

_Form = Callable[[Array, Array, Array], Array]
_KINDS: Mapping[str, _Form] = {
    "none": lambda a, _b, _r: a,
    "bias": lambda a, b, _r: a + b,
    "bias+relu": lambda a, b, _r: np.maximum(a + b, 0),
    "bias+relu6": lambda a, b, _r: np.clip(a + b, 0, 6),
    "bias+residual": lambda a, b, r: a + b + r,
    "bias+residual+relu": lambda a, b, r: np.maximum(a + b + r, 0),
}


def epilogue_kind(problem: Problem) -> str:
    """What a convolution does behind its products: a name, found by trying its program.

    Raises:
        BuildError: it is none of those that PyTorch has a peer for.
    """
    op = problem.op
    assert isinstance(op, Conv)
    if op.prologue is not None:
        raise BuildError(f"no PyTorch peer for the prologue of {problem}: {op.prologue}")
    extras = range(2, len(problem.inputs))
    biases = [slot for slot in extras if _is_bias(problem, slot)]
    residuals = [slot for slot in extras if problem.inputs[slot].shape == problem.y.shape]
    if op.epilogue is None:
        return "bias" if biases else "none"
    rng = np.random.default_rng(0)
    probes = {slot: 4 * rng.standard_normal(500) for slot in (0, *extras)}
    (out,) = op.epilogue.evaluate(probes[0], *(probes[slot] for slot in extras))
    zero = np.zeros(500)
    bias = probes[biases[0]] if len(biases) == 1 else zero
    residual = probes[residuals[0]] if len(residuals) == 1 else zero
    known = len(biases) <= 1 and len(residuals) <= 1 and len(biases) + len(residuals) == len(extras)
    for name, form in _KINDS.items():
        if known and np.allclose(out, form(probes[0], bias, residual), rtol=1e-9, atol=1e-9):
            return name
    raise BuildError(f"no PyTorch peer for the epilogue of {problem}: {op.epilogue}")


def _convolutions(problem: Problem) -> list[Alternative]:
    op, kind = problem.op, epilogue_kind(problem)
    assert isinstance(op, Conv)
    rank = len(op.strides)
    begins, ends = op.pads[:rank], op.pads[rank:]
    slots = range(2, len(problem.inputs))
    bias = next((s for s in slots if _is_bias(problem, s)), None)
    residual = next((s for s in slots if problem.inputs[s].shape == problem.y.shape), None)
    if kind == "none" or bias == residual:
        bias = residual = None

    def pick(tensors: Sequence[torch.Tensor], slot: int | None) -> torch.Tensor | None:
        return None if slot is None else tensors[slot]

    def separate(*t: torch.Tensor) -> torch.Tensor:
        x, pads = t[0], begins
        if begins != ends:
            x = F.pad(x, [n for p in reversed(list(zip(begins, ends, strict=True))) for n in p])
            pads = (0,) * rank
        y = F.conv2d(x, t[1], pick(t, bias), op.strides, pads, op.dilations, op.groups)
        added = pick(t, residual)
        if added is not None:
            y = y.add_(added)
        if kind.endswith("relu6"):
            return F.relu6(y, inplace=True)
        return torch.relu_(y) if kind.endswith("relu") else y

    def fused(*t: torch.Tensor) -> torch.Tensor:
        shape = (list(op.strides), list(begins), list(op.dilations), op.groups)
        added = pick(t, residual)
        if added is not None:
            y = torch.cudnn_convolution_add_relu(t[0], t[1], added, 1.0, pick(t, bias), *shape)
        else:
            y = torch.cudnn_convolution_relu(t[0], t[1], pick(t, bias), *shape)
        return y

    found = [Alternative("convolution, then operations", separate)]
    if begins == ends:
        exact = kind in ("bias+relu", "bias+residual+relu")
        name = "cuDNN fused" if exact else "cuDNN fused, with ReLU"
        found.insert(0, Alternative(name, fused, exact))
    return found


# -- ops that wait for memory --------------------------------------------------------------------


def _max_pool(problem: Problem) -> Alternative:
    op = problem.op
    assert isinstance(op, MaxPool)
    pads = op.pads[: len(op.kernel)]
    return Alternative("F.max_pool2d", lambda x: F.max_pool2d(x, op.kernel, op.strides, pads))


def _average_pool(problem: Problem) -> Alternative:
    op = problem.op
    assert isinstance(op, AveragePool)
    pads = op.pads[: len(op.kernel)]
    return Alternative(
        "F.avg_pool2d",
        lambda x: F.avg_pool2d(
            x, op.kernel, op.strides, pads, count_include_pad=op.count_include_pad
        ),
    )


def _mean(problem: Problem) -> Alternative:
    op = problem.op
    assert isinstance(op, Reduce)
    if op.kind != "mean":
        raise BuildError(f"no PyTorch peer for {problem}; add one to benchmarks/kernel_peers.py")
    return Alternative("Tensor.mean", lambda x: x.mean(op.axes, op.keepdims))


def _layer_norm(problem: Problem) -> Alternative:
    op = problem.op
    assert isinstance(op, LayerNormalization)
    shape = problem.inputs[0].shape[op.axis :]
    return Alternative("F.layer_norm", lambda x, w, b: F.layer_norm(x, shape, w, b, op.epsilon))


def _softmax(problem: Problem) -> Alternative:
    op = problem.op
    assert isinstance(op, Softmax)
    return Alternative("F.softmax", lambda x: F.softmax(x, op.axis))


def _copy(problem: Problem) -> Alternative:
    y = problem.y

    def run(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_strided(y.shape, y.strides, dtype=_TYPES[y.dtype.name], device=x.device)
        return out.copy_(x)

    return Alternative("Tensor.copy_", run)


_PLAIN: Mapping[type, Callable[[Problem], Alternative]] = {
    Add: lambda _: Alternative("torch.add", torch.add),
    AveragePool: _average_pool,
    Gelu: lambda _: Alternative("F.gelu", F.gelu),
    LayerNormalization: _layer_norm,
    MaxPool: _max_pool,
    Reduce: _mean,
    Reformat: _copy,
    Relu: lambda _: Alternative("torch.relu", torch.relu),
    Softmax: _softmax,
}
