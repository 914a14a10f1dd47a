"""Local response normalization across channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
)
from nrt.cuda_kernels.strided import (
    Geometry,
    collapse,
    index_lines,
    offset_text,
    refuse_fp8,
    refuse_large,
    refuse_rank,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Variant
from nrt.dtypes import DType
from nrt.ir.ops import LRN
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "LrnNhwc", "LrnStrided"]

_THREADS = 256


def _power(base: str, exponent: float) -> str:
    """Expression of ``base ** exponent``; the usual 3/4 by two square roots."""
    if exponent == 0.75:
        return f"sqrt_({base}) * sqrt_(sqrt_({base}))"
    return f"pow_({base}, F({exponent!r}))"


def _kernel(op: LRN, dtype: DType, rank: int, width: int) -> tuple[Any, Any]:
    """``width`` neighbouring channels of one position per thread and step.

    With ``width`` 1 a thread reads its whole window of channels, at any stride. Wider ones (NHWC)
    read the vector before, their own and the one after, which hold the window when half of it is
    no larger than a vector; what is beyond the channels counts as zero. Neighbours' reads come
    from cache.

    Kernel parameters: x, y, items, channel groups, strides of x and y along channels, then other
    dimensions: sizes[rank], strides of y[rank], of x[rank]. Groups are the fastest index.
    """
    before, after = (op.size - 1) // 2, op.size // 2
    sizes = [*(f"d{r}" for r in range(rank)), "groups"]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params = ["x", "y", "n", "groups", "xc", "yc", *sizes[:-1], *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    body = index_lines(rank + 1, "i", "c", sizes)
    group = f"c{rank}"
    body.append(f"xo = {offset_text(list(zip(coords, xs, strict=True)))}")
    body.append(f"yo = {offset_text(list(zip(coords, ys, strict=True)))}")
    values: list[str] = []
    first = -before if width == 1 else -1
    stop = after + 1 if width == 1 else 2
    for k in range(first, stop):
        tag = f"{k - first}"
        body += [
            f"g{tag} = i32(i32({group}) + i32({k}))",
            f"ok{tag} = g{tag} >= i32(0) and g{tag} < i32(groups)",
            f"p{tag} = u32(xo + u32(u32(u32(g{tag}) if ok{tag} else u32(0)) * xc))",
        ]
        lines, names = load_lines(f"v{tag}", "x", f"p{tag}", dtype, width)
        body += lines
        for e, name in enumerate(names):
            body.append(f"u{tag}_{e} = F({name}) if ok{tag} else F(0)")
            values.append(f"u{tag}_{e}")
    results = []
    for e in range(width):
        own = -first * width + e
        window = values[own - before : own + after + 1]
        body.append(f"s{e} = {' + '.join(f'{v} * {v}' for v in window)}")
        body.append(f"b{e} = F({op.bias!r}) + F({op.alpha / op.size!r}) * s{e}")
        body.append(f"z{e} = {values[own]} / ({_power(f'b{e}', op.beta)})")
        results.append(convert_text(f"z{e}", "f", dtype))
    body.append(f"o = u32(yo + u32({group} * yc))")
    body += store_lines("y", "o", dtype, results)
    text = (
        f"def kernel({', '.join(params)}):\n"
        f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))\n"
        f"    step = u32(cuda.gridDim.x * u32({_THREADS}))\n"
        "    while i < n:\n"
        + "".join(f"        {line}\n" for line in body)
        + "        i = u32(i + step)\n"
    )
    kernel = kernel_function(text, kernel_namespace(dtype))
    return kernel, types.void(pointer(dtype), pointer(dtype), *[types.uint32] * (len(params) - 2))


def _outer(problem: Problem) -> Geometry:
    """All dimensions but the channels; strides of y, then of x."""
    x, y = problem.inputs[0], problem.y
    dims = [d for d in range(len(y.shape)) if d != 1]
    return collapse(
        [y.shape[d] for d in dims], [y.strides[d] for d in dims], [x.strides[d] for d in dims]
    )


def _emission(problem: Problem, width: int, device: DeviceSpec) -> Emission:
    op, x, y = problem.op, problem.inputs[0], problem.y
    assert isinstance(op, LRN)
    if y.size == 0:
        return Emission(())
    outer = _outer(problem)
    spec = KernelSpec(f"{__name__}:_kernel", (op, x.dtype, outer.rank, width), _THREADS)
    # In vectors a step of one group is `width` elements.
    numbers = [y.size // width, y.shape[1] // width, x.strides[1] * width, y.strides[1] * width]
    numbers += [*outer.shape, *outer.strides[0], *outer.strides[1]]
    args: tuple[Arg, ...] = (In(0), Out(), *scalars(numbers))
    grid = waves(device, y.size // width, _THREADS)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))


class LrnStrided(Variant):
    """Any strides, one element at a time."""

    name = "lrn_strided"
    ops = (LRN,)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return refuse_fp8(problem) or refuse_large(problem) or refuse_rank(_outer(problem))

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return _emission(problem, 1, device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        return 4 * problem.nbytes / device.bandwidth + 3e-6


class LrnNhwc(Variant):
    """Channels-last: 16 bytes of neighbouring channels per thread."""

    name = "lrn_nhwc"
    ops = (LRN,)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        op = problem.op
        assert isinstance(op, LRN)
        for name, spec in (("input", problem.inputs[0]), ("output", problem.y)):
            if spec.strides[1] != 1:
                return Refusal(f"{name} has channel stride {spec.strides[1]}, expected 1 (NHWC)")
        refusal = refuse_fp8(problem) or refuse_large(problem) or refuse_rank(_outer(problem))
        if refusal is None and not self._widths(problem):
            refusal = Refusal(
                f"no vector fits {problem.y.shape[1]} channels and a window of {op.size}"
            )
        return refusal

    @staticmethod
    def _widths(problem: Problem) -> list[int]:
        op, outer = problem.op, _outer(problem)
        assert isinstance(op, LRN)
        most = min(8, 16 // problem.y.dtype.itemsize)
        steps = [s for row in outer.strides for s, d in zip(row, outer.shape, strict=True) if d > 1]
        return [
            w
            for w in (8, 4, 2)
            if w <= most
            and op.size // 2 <= w
            and problem.y.shape[1] % w == 0
            and all(s % w == 0 for s in steps)
        ]

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        del device
        return [(w,) for w in self._widths(problem)[:2]]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        return _emission(problem, config[0], device)


VARIANTS: tuple[Variant, ...] = (LrnStrided(), LrnNhwc())
