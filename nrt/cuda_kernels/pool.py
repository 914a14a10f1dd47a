"""Max and average pooling.

Window, strides, dilations and the kind of pool are constants of the binary; sizes, strides in
memory and padding are run-time scalars.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
    uses_double,
)
from nrt.cuda_kernels.pool_end import PoolEnd, pool_args, pool_end, pool_signature, refuse_end
from nrt.cuda_kernels.pool_strips import PoolStrips
from nrt.cuda_kernels.strided import (
    index_lines,
    offset_text,
    refuse_large,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, KernelSpec, Launch, Scalar, Variant
from nrt.dtypes import DType
from nrt.ir.ops import AveragePool, MaxPool
from nrt.ir.ops.common import kind_of
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "PoolNhwc", "PoolStrided"]

_THREADS = 256
# Windows up to this size are written out, so that their loads overlap; larger ones are loops.
_UNROLL = 64

_Pool = MaxPool | AveragePool


def _lowest(kind: str) -> str:
    # The smallest int64 as a sum: its literal would not be one token.
    return {"f": "F(-inf)", "i": "I(-9223372036854775807 - 1)", "b": "False"}[kind]


def _divisor_lines(
    rank: int, include: bool, kernel: Sequence[int], dilation: Sequence[int]
) -> list[str]:
    """Lines that count a window's elements into ``count``, per dimension as a difference of bounds.

    Of the ``kernel`` places ``at{r} + t * dilation`` those count that lie in the input, or with
    ``include`` in the padded input: a partial window of ceil_mode reaches beyond it.
    """
    lines = []
    for r in range(rank):
        low = f"-i32(pb{r})" if include else "i32(0)"
        high = f"i32(h{r} + pe{r})" if include else f"i32(h{r})"
        k, d = kernel[r], dilation[r]
        lines += [f"k{r} = i32(0)", f"low{r} = i32({low})", f"high{r} = {high}"]
        lines += [f"for t in range({k}):"]
        lines += [f"    q = i32(at{r} + i32(t * {d}))"]
        lines += [f"    k{r} = i32(k{r} + (i32(1) if (q >= low{r} and q < high{r}) else i32(0)))"]
    product = " * ".join(f"F(k{r})" for r in range(rank))
    lines.append(f"count = {product}")
    return lines


def _kernel(op: _Pool, dtype: DType, width: int, end: PoolEnd | None = None) -> tuple[Any, Any]:
    """One output pixel and ``width`` neighbouring channels per thread and step.

    Threads run over channels fastest (``width`` > 1: NHWC) or over the last spatial dimension.
    Loads are clamped into the input and what lies outside is replaced by a select, so that a
    window's loads are all in flight. An input element is read from memory once; what windows share
    comes from cache.

    Kernel parameters: x, y, with an ``end`` its operands, count of threads' items, channel
    groups, then per spatial dimension: output size, input size, padding before, padding after;
    strides of x for N, C, S..., of y.
    """
    rank = len(op.kernel)
    average = isinstance(op, AveragePool)
    double = uses_double(dtype)
    kind = kind_of(dtype)
    spatial = range(rank)
    params = ["x", "y", *(end.pointers if end else ()), "n", "groups"]
    params += [f"{name}{r}" for r in spatial for name in ("p", "h", "pb", "pe")]
    params += ["xn", "xc", *(f"xs{r}" for r in spatial), "yn", "yc", *(f"ys{r}" for r in spatial)]
    body: list[str] = []
    if width > 1:
        sizes = ["batch", *(f"p{r}" for r in spatial), "groups"]
        body += index_lines(rank + 2, "i", "c", sizes)
        batch, channel, places = "c0", f"c{rank + 1}", [f"c{r + 1}" for r in spatial]
    else:
        sizes = ["batch", "groups", *(f"p{r}" for r in spatial)]
        body += index_lines(rank + 2, "i", "c", sizes)
        batch, channel, places = "c0", "c1", [f"c{r + 2}" for r in spatial]
    body.append(f"ch = u32({channel} * u32({width}))")
    body.append(f"xo = {offset_text([(batch, 'xn'), ('ch', 'xc')])}")
    for r in spatial:
        body.append(f"at{r} = i32(i32({places[r]} * u32({op.strides[r]})) - i32(pb{r}))")
    accs = [f"acc{j}" for j in range(width)]
    start = "F(0)" if average else _lowest(kind)
    body += [f"{a} = {start}" for a in accs]

    def visit(tag: str, offsets: Sequence[str]) -> list[str]:
        """Lines that add the window's element at ``offsets`` to the accumulators."""
        lines, inside, terms = [], [], []
        for r in spatial:
            lines += [
                f"q{tag}_{r} = i32(at{r} + i32({offsets[r]}))",
                f"g{tag}_{r} = min(max(q{tag}_{r}, i32(0)), i32(i32(h{r}) - i32(1)))",
            ]
            inside.append(f"q{tag}_{r} == g{tag}_{r}")
            terms.append((f"u32(g{tag}_{r})", f"xs{r}"))
        lines.append(f"ok{tag} = {' and '.join(inside)}")
        lines.append(f"o{tag} = {offset_text([*terms, ('xo', '1')])}")
        loads, names = load_lines(f"v{tag}", "x", f"o{tag}", dtype, width)
        lines += loads
        for a, name in zip(accs, names, strict=True):
            if average:
                value = f"F({name})" if double or kind != "f" else name
                lines.append(f"{a} = {a} + ({value} if ok{tag} else F(0))")
            else:
                lines.append(f"{a} = max_({a}, {name} if ok{tag} else {_lowest(kind)})")
        return lines

    if math.prod(op.kernel) <= _UNROLL:
        index = [0] * rank
        for number in range(math.prod(op.kernel)):
            rest = number
            for r in reversed(spatial):
                rest, index[r] = divmod(rest, op.kernel[r])
            body += visit(str(number), [str(index[r] * op.dilations[r]) for r in spatial])
    else:
        indent = ""
        for r in spatial:
            body.append(f"{indent}for t{r} in range({op.kernel[r]}):")
            indent += "    "
        inner = visit("", [f"t{r} * {op.dilations[r]}" for r in spatial])
        body += [indent + line for line in inner]
    if average:
        assert isinstance(op, AveragePool)
        body += _divisor_lines(rank, op.count_include_pad, op.kernel, op.dilations)
        body += [f"{a} = {a} / count" for a in accs]
    terms = [(batch, "yn"), ("ch", "yc"), *((places[r], f"ys{r}") for r in spatial)]
    body.append(f"yo = {offset_text(terms)}")
    if end is None:
        results = [convert_text(a, "f" if average else kind, dtype) for a in accs]
        body += store_lines("y", "yo", dtype, results)
    else:
        row = batch
        for r in spatial:
            row = f"u32(u32({row} * p{r}) + {places[r]})"
        body.append(end.store(accs, row, "ch", "yo"))
    text = "".join(
        f"{line}\n"
        for line in [
            f"def kernel({', '.join(params)}):",
            f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))",
            f"    step = u32(cuda.gridDim.x * u32({_THREADS}))",
            "    while i < n:",
            *(f"        {line}" for line in body),
            "        i = u32(i + step)",
        ]
    )
    namespace = kernel_namespace(dtype) | (end.namespace(width) if end else {})
    return kernel_function(text, namespace), pool_signature(dtype, end, params)


def _binary_op(op: _Pool) -> _Pool:
    """The op as far as the binary depends on it: padding and rounding are run-time matters."""
    rank = len(op.kernel)
    pads = (0,) * (2 * rank)
    if isinstance(op, AveragePool):
        return AveragePool(
            op.kernel, op.strides, pads, op.dilations, count_include_pad=op.count_include_pad
        )
    return MaxPool(op.kernel, op.strides, pads, op.dilations)


def _emission(problem: Problem, width: int, device: DeviceSpec) -> Emission:
    x, y = problem.inputs[0], problem.y
    op = problem.op
    assert isinstance(op, _Pool)
    if y.size == 0:
        return Emission(())
    rank = len(op.kernel)
    count = y.size // width
    numbers = [y.shape[1] // width]
    for r in range(rank):
        numbers += [y.shape[2 + r], x.shape[2 + r], op.pads[r], op.pads[rank + r]]
    end = pool_end(problem)
    spec = KernelSpec(f"{__name__}:_kernel", (_binary_op(op), x.dtype, width, end), _THREADS)
    args: tuple[Arg, ...] = (
        *pool_args(problem, end),
        Scalar(count),
        *scalars([*numbers, *x.strides, *y.strides]),
    )
    grid = waves(device, count, _THREADS)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), args),))


class PoolStrided(Variant):
    """Any strides and rank, one output element at a time."""

    name = "pool_strided"
    ops = (MaxPool, AveragePool)
    rank = 1
    reference = True

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        return refuse_large(problem) or refuse_end(problem)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        del problem, device
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del config
        return _emission(problem, 1, device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        op = problem.op
        assert isinstance(op, _Pool)
        # Index arithmetic of every window element, about 30 instructions.
        work = problem.y.size * math.prod(op.kernel) * 30 / device.fp32_flops
        return 3 * problem.nbytes / device.bandwidth + work + 3e-6


class PoolNhwc(Variant):
    """Channels-last: 16 bytes of neighbouring channels per thread."""

    name = "pool_nhwc"
    ops = (MaxPool, AveragePool)
    rank = 2

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        del device
        for name, spec in (("input", problem.inputs[0]), ("output", problem.y)):
            if spec.strides[1] != 1:
                return Refusal(f"{name} has channel stride {spec.strides[1]}, expected 1 (NHWC)")
        refusal = refuse_large(problem) or refuse_end(problem)
        if refusal is None and not self._widths(problem):
            refusal = Refusal(
                f"{problem.y.shape[1]} channels with strides {problem.inputs[0].strides} and "
                f"{problem.y.strides} do not fit a vector"
            )
        return refusal

    @staticmethod
    def _widths(problem: Problem) -> list[int]:
        x, y = problem.inputs[0], problem.y
        found = []
        width = min(8, 16 // x.dtype.itemsize)
        steps = [s for t in (x, y) for d, s in enumerate(t.strides) if d != 1 and t.shape[d] > 1]
        while width > 1:
            if y.shape[1] % width == 0 and all(s % width == 0 for s in steps):
                found.append(width)
            width //= 2
        return found

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        widths = self._widths(problem)
        # A small output leaves SMs idle with wide vectors: try the next narrower one first.
        full = [w for w in widths if problem.y.size // w >= _THREADS * device.multiprocessors]
        order = [*full, *reversed([w for w in widths if w not in full])]
        return [(w,) for w in order[:3]]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        return _emission(problem, config[0], device)

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        op = problem.op
        assert isinstance(op, _Pool)
        # Of the 8 instructions per place of a window about 5 are not hidden under memory: MaxPool
        # 3x3 with stride 2 reaches 2.5 of an H200's 4.3 TB/s.
        work = 5 * problem.y.size * math.prod(op.kernel) / (device.fp32_flops / 2)
        return super().estimate(problem, config, device) + work


VARIANTS: tuple[Variant, ...] = (PoolStrided(), PoolNhwc(), PoolStrips())
