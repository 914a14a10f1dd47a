"""Runs a host variant on fresh random data between poisoned margins and compares with float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cpu_kernels import HostVariant, variant_by_name, variants_for
from nrt.dtypes import FP16, FP32, DType
from nrt.ir.op import Array, Op
from nrt.problem import Problem, Refusal, TensorSpec

# ‖out − ref‖ / ‖ref‖ by the element type of the output.
TOLERANCE = {"fp32": 1e-5, "fp64": 1e-12, "fp16": 5e-3, "fp8e4m3": 1e-2}
MARGIN = 37
NHWC = (0, 2, 3, 1)
_POISON_INT = 93


def spec(
    shape: Sequence[int], order: Sequence[int] | None = None, dtype: DType = FP32
) -> TensorSpec:
    return TensorSpec.dense(tuple(shape), dtype, tuple(order) if order else None)


def nhwc(*shape: int, dtype: DType = FP32) -> TensorSpec:
    return spec(shape, NHWC, dtype)


def channel_slice(shape: Sequence[int], total: int, dtype: DType = FP32) -> TensorSpec:
    """A channels-last slice of a tensor with ``total`` channels."""
    _, _, h, w = shape
    return TensorSpec((*shape,), dtype, (h * w * total, 1, w * total, total))


def problem(
    op: Op,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec | str] | None = None,
    constants: Sequence[int] = (1,),
) -> Problem:
    """``outputs``: specs, or memory orders; row-major by default. ``constants``: constant slots."""
    types = op.infer(*(t.type for t in inputs))
    made = []
    for index, type_ in enumerate(types):
        given = outputs[index] if outputs else None
        if isinstance(given, TensorSpec):
            assert given.type == type_, (given.type, type_)
            made.append(given)
        else:
            made.append(spec(type_.shape, NHWC if given == "nhwc" else None, type_.dtype))
    flags = tuple(i in constants for i in range(len(inputs)))
    return Problem(op, tuple(inputs), tuple(made), flags)


def _buffer(t: TensorSpec) -> tuple[Array, Array]:
    base = np.empty(t.span + 2 * MARGIN, t.dtype.numpy)
    base[...] = np.nan if t.dtype.is_float else _POISON_INT % 2 if t.dtype.kind == "bool" else 93
    strides = tuple(s * t.dtype.itemsize for s in t.strides)
    view = np.ndarray(t.shape, t.dtype.numpy, base, MARGIN * t.dtype.itemsize, strides)
    return base, view


def random_array(t: TensorSpec, rng: np.random.Generator) -> Array:
    if t.dtype.is_float:
        return rng.standard_normal(t.shape).astype(t.dtype.numpy)
    if t.dtype.kind == "bool":
        return rng.integers(0, 2, t.shape).astype(np.bool_)
    return rng.integers(1, 100, t.shape).astype(t.dtype.numpy)


def place(t: TensorSpec, array: Array) -> Array:
    _, view = _buffer(t)
    view[...] = array
    return view


def run(
    variant: HostVariant, p: Problem, config: Any, arrays: Sequence[Array]
) -> list[tuple[Array, Array]]:
    """Returns the outputs with their buffers; inputs lie as the problem says."""
    inputs = []
    for slot, (t, array, constant) in enumerate(zip(p.inputs, arrays, p.constants, strict=True)):
        if constant:
            inputs.append(variant.pack(p, config, slot, np.ascontiguousarray(array)))
        else:
            inputs.append(place(t, array))
    outputs = [_buffer(t) for t in p.outputs]
    scratch = np.full(variant.workspace(p, config) + 128, 255, np.uint8)
    start = -scratch.ctypes.data % 64
    size = variant.workspace(p, config)
    call = variant.bind(p, config)
    for _ in range(2):
        # The second call finds what the first left in the workspace.
        call(inputs, [view for _, view in outputs], scratch[start : start + size])
    assert (scratch[start + size :] == 255).all(), "the workspace was overrun"
    return [(view, base) for base, view in outputs]


def expected(p: Problem, arrays: Sequence[Array]) -> tuple[Array, ...]:
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    return p.op.reference(*wide)


def check(
    name: str, p: Problem, rng: np.random.Generator, arrays: Sequence[Array] | None = None,
    all_configs: bool = False,
) -> None:  # fmt: skip
    """The variant called ``name`` solves ``p`` within tolerance and writes its outputs only."""
    variant = variant_by_name(name)
    refusal = {v.name: r for v, r in variants_for(p)}[name]
    assert refusal is None, refusal
    given = list(arrays) if arrays is not None else [random_array(t, rng) for t in p.inputs]
    wanted = expected(p, given)
    configs = variant.configs(p)
    for config in configs if all_configs else configs[:1]:
        for (out, base), want, t in zip(
            run(variant, p, config, given), wanted, p.outputs, strict=True
        ):
            compare(out, want, t)
            untouched = np.ones(base.size, np.bool_)
            offsets = np.array(MARGIN)
            for size, stride in zip(t.shape, t.strides, strict=True):
                offsets = offsets[..., None] + np.arange(size) * stride
            untouched[offsets.ravel()] = False
            rest = base[untouched]
            clean = np.isnan(rest) if t.dtype.is_float else rest == rest.flat[0]
            assert clean.all(), "wrote outside the output"


def compare(out: Array, want: Array, t: TensorSpec) -> None:
    assert out.shape == want.shape
    if not t.dtype.is_float:
        np.testing.assert_array_equal(out, want)
        return
    assert np.isfinite(out.astype(np.float64)).all(), "NaN or infinite results"
    norm = np.linalg.norm(want.astype(np.float64).ravel())
    error = np.linalg.norm((out.astype(np.float64) - want).ravel())
    assert error <= TOLERANCE[t.dtype.name] * norm, error / norm


def refusal(name: str, p: Problem) -> str:
    """The reason why the variant refuses ``p``."""
    found = {v.name: r for v, r in variants_for(p)}[name]
    assert isinstance(found, Refusal), f"{name} does not refuse {p}"
    return found.reason


def half(t: TensorSpec) -> TensorSpec:
    return TensorSpec(t.shape, FP16, t.strides)
