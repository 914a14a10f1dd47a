"""The kernels of elementwise ops: any strides, and vectors along the innermost dimension.

A copy with a conversion is the identity program, so `copy` runs on them too. Several results are
written by one kernel: every thread reads an element of each input before it writes one of each
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
    uses_double,
)
from nrt.cuda_kernels.epilogue import float_uses
from nrt.cuda_kernels.strided import (
    Geometry,
    aligned,
    index_lines,
    offset_text,
    scalars,
    waves,
)
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Out, Scalar
from nrt.dtypes import BYTES, DType
from nrt.ir.ops.quantize import without_byte_rounding
from nrt.ir.pointwise import Program
from nrt.problem import Refusal

__all__ = [
    "VectorConfig",
    "strided_emission",
    "vector_configs",
    "vector_emission",
    "vector_refusal",
]

_THREADS = 256
# Registers that hold loaded values in the vector kernel: more would cost occupancy.
_LIVE_VALUES = 64
# Instructions written out: HardSwish on 32 elements (192) compiles for 3.4 s, on 8 for 0.4 s.
# A Gelu (8) on 16 compiles for 1.7 s; it wants two vectors in flight, its arithmetic is long.
_TEXT = 128


def _modes(strides: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """Per input, ``s`` (one element), ``v`` (vectors) or ``b`` (an element per vector)."""
    return tuple("s" if not any(s) else ("v" if s[-1] == 1 else "b") for s in strides)


# -- strided ---------------------------------------------------------------------------------------


def _program_lines(
    program: Program, loaded: Sequence[str], dtypes: Sequence[DType], double: bool, tag: str
) -> tuple[list[str], tuple[str, ...]]:
    """Lines that run ``program`` on registers ``loaded``; returns the variables of its results."""
    lines, names = [], []
    for k, (name, dtype) in enumerate(zip(loaded, dtypes, strict=True)):
        wide = f"{tag}x{k}"
        lines.append(f"{wide} = F({name})" if double and dtype.is_float else f"{wide} = {name}")
        names.append(wide)
    body, results = program.statements(names, prefix=f"{tag}r")
    return lines + body, results


def _result_texts(
    program: Program, results: Sequence[str], outputs: Sequence[DType]
) -> tuple[str, ...]:
    """Expressions of the results as the registers that the outputs store from."""
    return tuple(
        convert_text(result, program.kinds[register], dtype)
        for result, register, dtype in zip(results, program.outputs, outputs, strict=True)
    )


def _strided_kernel(
    program: Program, inputs: tuple[DType, ...], outputs: tuple[DType, ...], rank: int
) -> tuple[Any, Any]:
    """One element per thread and step, any strides.

    A grid-stride loop over the first output in memory order; each index is split into ``rank``
    coordinates by run-time divisions. Per element: the inputs' and the outputs' bytes, and the
    program.

    Kernel parameters: inputs, outputs, count, offset of input 0, sizes[rank], strides of each
    output[rank], of each input[rank].
    """
    double = uses_double(*inputs, *outputs)
    sizes = [f"d{r}" for r in range(rank)]
    xs = [f"x{k}" for k in range(len(inputs))]
    ys = [f"y{m}" for m in range(len(outputs))]
    steps = {name: [f"s{name}_{r}" for r in range(rank)] for name in (*ys, *xs)}
    params = [*xs, *ys, "n", "base", *sizes, *(s for row in steps.values() for s in row)]
    body = index_lines(rank, "i", "c", sizes)
    coords = [f"c{r}" for r in range(rank)]
    loaded = []
    for k, dtype in enumerate(inputs):
        terms = list(zip(coords, steps[f"x{k}"], strict=True))
        # Modulo 2^32: a stride may be negative.
        place = offset_text(terms if k else [*terms, ("base", "1")])
        body.append(f"v{k} = load_{dtype}(x{k}, {place})")
        loaded.append(f"v{k}")
    lines, results = _program_lines(program, loaded, inputs, double, "p")
    body += lines
    values = _result_texts(program, results, outputs)
    for y, dtype, value in zip(ys, outputs, values, strict=True):
        place = offset_text(list(zip(coords, steps[y], strict=True)))
        body.append(f"store_{dtype}({y}, {place}, {value})")
    text = (
        f"def kernel({', '.join(params)}):\n"
        f"    i = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))\n"
        f"    step = u32(cuda.gridDim.x * u32({_THREADS}))\n"
        "    while i < n:\n"
        + "".join(f"        {line}\n" for line in body)
        + "        i = u32(i + step)\n"
    )
    kernel = kernel_function(text, kernel_namespace(*inputs, *outputs))
    pointers = [pointer(d) for d in (*inputs, *outputs)]
    return kernel, types.void(*pointers, *[types.uint32] * (len(params) - len(pointers)))


def strided_emission(
    program: Program,
    inputs: tuple[DType, ...],
    outputs: tuple[DType, ...],
    geometry: Geometry,
    device: DeviceSpec,
    *,
    base: int = 0,
) -> Emission:
    """Launch `_strided_kernel`; nothing for empty outputs.

    Args:
        program, inputs, outputs: what is computed, on which element types.
        geometry: strides of each output, then of each input.
        device: gives the size of the grid.
        base: offset of the first element of input 0.
    """
    if geometry.size == 0:
        return Emission(())
    spec = KernelSpec(
        f"{__name__}:_strided_kernel", (program, inputs, outputs, geometry.rank), _THREADS
    )
    args: list[Arg] = [In(k) for k in range(len(inputs))]
    args += [Out(m) for m in range(len(outputs))]
    args += scalars((geometry.size, base, *geometry.shape))
    for strides in geometry.strides:
        args += scalars(strides)
    grid = waves(device, geometry.size, _THREADS)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), tuple(args)),))


# -- vectors ---------------------------------------------------------------------------------------


class VectorConfig(NamedTuple):
    """Configuration of the vector kernel.

    Attributes:
        width: elements per vector.
        unroll: vectors per thread and step, all loaded before the first is computed.
    """

    width: int
    unroll: int


def _vector_kernel(
    program: Program,
    inputs: tuple[DType, ...],
    outputs: tuple[DType, ...],
    modes: tuple[str, ...],
    rank: int,
    width: int,
    unroll: int,
    tail: bool,
    check: bool,
) -> tuple[Any, Any]:
    """``unroll`` vectors of ``width`` elements per thread and step.

    The last dimension is contiguous in the outputs and, per input, contiguous (``v``) or constant
    (``b``); inputs of mode ``s`` are one element, loaded once. All loads of a step are issued
    before the first result is computed; indices beyond the end are clamped for loads, so that no
    branch separates them. Only a line (``rank`` 1) may have a ``tail`` of less than a vector; its
    elements go one to a thread.

    With ``check`` the kernel looks at its pointers and goes element by element where one is not
    aligned to a vector: a copy's ends may lie anywhere inside a larger tensor.

    Kernel parameters: inputs, outputs, vectors, tail elements, sizes[rank] (the last in vectors),
    strides of each output[rank - 1], of each ``v`` or ``b`` input[rank - 1].
    """
    double = uses_double(*inputs, *outputs)
    sizes = [f"d{r}" for r in range(rank)]
    xs = [f"x{k}" for k in range(len(inputs))]
    ys = [f"y{m}" for m in range(len(outputs))]
    moving = [x for x, mode in zip(xs, modes, strict=True) if mode != "s"]
    steps = {name: [f"s{name}_{r}" for r in range(rank - 1)] for name in (*ys, *moving)}
    params = [*xs, *ys, "n", "tail", *sizes, *(s for row in steps.values() for s in row)]
    before = [
        f"one{k} = load_{inputs[k]}(x{k}, u32(0))" for k, mode in enumerate(modes) if mode == "s"
    ]
    fetch: list[str] = []
    work: list[str] = []
    # Integers in and out of floats are as dear as several additions; bytes have their own ways.
    whole = width % 4 == 0 and not double and len(outputs) == 1 and outputs[0] in BYTES
    rounded = without_byte_rounding(program, outputs[0]) if whole else None
    main = rounded or program
    for j in range(unroll):
        fetch.append(f"v{j} = u32(t + u32({j * _THREADS}))")
        fetch.append(f"w{j} = v{j} if v{j} < n else last")
        fetch += index_lines(rank, f"w{j}", f"c{j}_", sizes)
        coords = [f"c{j}_{r}" for r in range(rank - 1)]
        inner = f"u32(c{j}_{rank - 1} * u32({width}))"
        values: list[list[str]] = []
        for k, dtype in enumerate(inputs):
            if modes[k] == "s":
                values.append([f"one{k}"] * width)
                continue
            terms = list(zip(coords, steps[f"x{k}"], strict=True))
            if modes[k] == "v":
                terms.append((inner, "1"))
            fetch.append(f"a{j}_{k} = {offset_text(terms)}")
            if modes[k] == "b":
                fetch.append(f"e{j}_{k} = load_{dtype}(x{k}, a{j}_{k})")
                values.append([f"e{j}_{k}"] * width)
                continue
            floats = not double and float_uses(main, k)
            lines, names = load_lines(f"e{j}_{k}", f"x{k}", f"a{j}_{k}", dtype, width, floats)
            fetch += lines
            values.append(names)
        for e in range(width):
            lines, results = _program_lines(
                main, [v[e] for v in values], inputs, double, f"p{j}_{e}"
            )
            work += lines
            texts = results if rounded else _result_texts(program, results, outputs)
            for m, text in enumerate(texts):
                work.append(f"z{j}_{m}_{e} = {text}")
        for m, y in enumerate(ys):
            terms = [*zip(coords, steps[y], strict=True), (inner, "1")]
            work.append(f"o{j}_{m} = {offset_text(terms)}")
        work.append(f"if v{j} < n:")
        for m, (y, dtype) in enumerate(zip(ys, outputs, strict=True)):
            stored = [f"z{j}_{m}_{e}" for e in range(width)]
            stores = store_lines(y, f"o{j}_{m}", dtype, stored, floats=rounded is not None)
            work += [f"    {line}" for line in stores]
    after: list[str] = []
    if tail:
        loaded = []
        for k, dtype in enumerate(inputs):
            if modes[k] == "s":
                loaded.append(f"one{k}")
                continue
            after.append(f"q{k} = load_{dtype}(x{k}, e)")
            loaded.append(f"q{k}")
        lines, results = _program_lines(program, loaded, inputs, double, "q")
        after += lines
        for y, dtype, value in zip(
            ys, outputs, _result_texts(program, results, outputs), strict=True
        ):
            after.append(f"store_{dtype}({y}, e, {value})")
        after = [
            f"e = u32(cuda.blockIdx.x * u32({_THREADS}) + u32(cuda.threadIdx.x))",
            "if e < tail:",
            f"    e = u32(e + u32(n * u32({width})))",
            *(f"    {line}" for line in after),
        ]
    span = _THREADS * unroll
    start = []
    if check:
        scan = _scan_lines(program, inputs, outputs, modes, rank, width)
        places = " | ".join(f"(at({p}, u32(0)) & i64(15))" for p in (*moving, *ys))
        # An address that is no multiple of the vector leaves low bits.
        start = [
            f"if ({places}) != i64(0):",
            *(f"    {line}" for line in scan),
            "    return",
        ]
    text = "".join(
        f"{line}\n"
        for line in [
            f"def kernel({', '.join(params)}):",
            *(f"    {line}" for line in before),
            *(f"    {line}" for line in start),
            f"    t = u32(u32(cuda.blockIdx.x * u32({span})) + u32(cuda.threadIdx.x))",
            f"    step = u32(cuda.gridDim.x * u32({span}))",
            "    last = u32(n - u32(1))",
            "    while t < n:",
            *(f"        {line}" for line in fetch + work),
            "        t = u32(t + step)",
            *(f"    {line}" for line in after),
        ]
    )
    kernel = kernel_function(text, kernel_namespace(*inputs, *outputs))
    pointers = [pointer(d) for d in (*inputs, *outputs)]
    return kernel, types.void(*pointers, *[types.uint32] * (len(params) - len(pointers)))


def _scan_lines(
    program: Program,
    inputs: tuple[DType, ...],
    outputs: tuple[DType, ...],
    modes: tuple[str, ...],
    rank: int,
    width: int,
) -> list[str]:
    """The grid-stride loop of the vector kernel's parameters over single elements."""
    sizes = [f"d{r}" for r in range(rank - 1)] + ["inner"]
    body = index_lines(rank, "e", "f", sizes)
    coords = [f"f{r}" for r in range(rank)]
    loaded = []
    for k, dtype in enumerate(inputs):
        if modes[k] == "s":
            loaded.append(f"one{k}")
            continue
        steps = [f"sx{k}_{r}" for r in range(rank - 1)] + (["1"] if modes[k] == "v" else [])
        place = offset_text(list(zip(coords, steps, strict=False)))
        body.append(f"m{k} = load_{dtype}(x{k}, {place})")
        loaded.append(f"m{k}")
    double = uses_double(*inputs, *outputs)
    lines, results = _program_lines(program, loaded, inputs, double, "m")
    values = _result_texts(program, results, outputs)
    for m, (dtype, value) in enumerate(zip(outputs, values, strict=True)):
        steps = [*(f"sy{m}_{r}" for r in range(rank - 1)), "1"]
        place = offset_text(list(zip(coords, steps, strict=True)))
        lines.append(f"store_{dtype}(y{m}, {place}, {value})")
    return [
        f"inner = u32(d{rank - 1} * u32({width}))",
        f"total = u32(u32(n * u32({width})) + tail)",
        f"e = u32(u32(cuda.blockIdx.x * u32({_THREADS})) + u32(cuda.threadIdx.x))",
        "while e < total:",
        *(f"    {line}" for line in [*body, *lines]),
        f"    e = u32(e + u32(cuda.gridDim.x * u32({_THREADS})))",
    ]


def _fits(geometry: Geometry, width: int) -> bool:
    """Whether vectors of ``width`` cover the last dimension and stay aligned in every tensor."""
    if geometry.rank > 1 and geometry.shape[-1] % width:
        return False
    return all(s[-1] == 0 or aligned(s, width) for s in geometry.strides)


def _widths(geometry: Geometry, inputs: Sequence[DType], outputs: Sequence[DType]) -> list[int]:
    """Vector widths that fit, the preferred first.

    The smallest item's 16 bytes first (fp32 to fp16: 8 elements, two loads and one store), then the
    largest item's.
    """
    items = [dtype.itemsize for dtype in outputs]
    for dtype, strides in zip(inputs, geometry.strides[len(outputs) :], strict=True):
        if strides[-1] == 1:
            items.append(dtype.itemsize)
    found: list[int] = []
    # More than 8 values per operand cost registers, but bytes may be moved 16 at a time.
    most = 16 if max(items) == 1 else 8
    for item in (min(items), max(items)):
        width = min(most, 16 // item)
        while width > 1 and not _fits(geometry, width):
            width //= 2
        if width > 1 and width not in found:
            found.append(width)
    return found


def vector_refusal(
    geometry: Geometry, inputs: Sequence[DType], outputs: Sequence[DType]
) -> Refusal | None:
    """Why `_vector_kernel` cannot walk ``geometry``, if it cannot."""
    if geometry.strides[0][-1] != 1:
        return Refusal("the output has no contiguous dimension")
    for slot, strides in enumerate(geometry.strides[1 : len(outputs)], 1):
        if strides[-1] != 1:
            return Refusal(
                f"output {slot} has stride {strides[-1]} along the first output's contiguous "
                "dimension, expected 1"
            )
    for slot, strides in enumerate(geometry.strides[len(outputs) :]):
        if strides[-1] not in (0, 1):
            return Refusal(
                f"input {slot} has stride {strides[-1]} along the output's contiguous dimension, "
                "expected 0 or 1"
            )
        if min(strides) < 0:
            return Refusal(f"input {slot} has a negative stride")
    if not _widths(geometry, inputs, outputs):
        return Refusal(
            f"no vector fits: {geometry.shape[-1]} contiguous elements, strides "
            + ", ".join(map(str, geometry.strides))
        )
    return None


def vector_configs(
    program: Program,
    geometry: Geometry,
    inputs: Sequence[DType],
    outputs: Sequence[DType],
    device: DeviceSpec,
) -> list[VectorConfig]:
    """Configurations of `_vector_kernel`, the one expected to be fastest first."""
    configs = []
    vectors = sum(1 for s in geometry.strides[len(outputs) :] if s[-1] == 1)
    for width in _widths(geometry, inputs, outputs):
        count = geometry.size // width
        fitting = [
            u
            for u in (1, 2, 4)
            if u == 1
            or (u * width * vectors <= _LIVE_VALUES and u * width * len(program.instrs) <= _TEXT)
        ]
        # Fill the device with four blocks per SM before giving a thread more than one vector.
        full = [u for u in fitting if count >= _THREADS * u * device.multiprocessors * 4]
        best = max(full, default=1)
        configs += [VectorConfig(width, u) for u in (best, *(u for u in fitting if u != best))]
    return configs


def vector_emission(
    program: Program,
    inputs: tuple[DType, ...],
    outputs: tuple[DType, ...],
    geometry: Geometry,
    config: VectorConfig,
    device: DeviceSpec,
    *,
    check: bool = False,
) -> Emission:
    """Launch `_vector_kernel`; nothing for empty outputs.

    Args:
        program, inputs, outputs: what is computed, on which element types.
        geometry: strides of each output, then of each input.
        config: vector width and vectors per thread.
        device: gives the size of the grid.
        check: let the kernel test that its pointers are aligned.
    """
    if geometry.size == 0:
        return Emission(())
    width, unroll = config
    first = len(outputs)
    modes = _modes(geometry.strides[first:])
    count = geometry.size // width
    tail = geometry.size - count * width
    spec = KernelSpec(
        f"{__name__}:_vector_kernel",
        (program, inputs, outputs, modes, geometry.rank, width, unroll, tail > 0, check),
        _THREADS,
    )
    args: list[Arg] = [In(k) for k in range(len(inputs))]
    args += [Out(m) for m in range(first)]
    args += [Scalar(count), Scalar(tail)]
    args += scalars((*geometry.shape[:-1], geometry.shape[-1] // width))
    for strides in geometry.strides[:first]:
        args += scalars(strides[:-1])
    for mode, strides in zip(modes, geometry.strides[first:], strict=True):
        if mode != "s":
            args += scalars(strides[:-1])
    grid = waves(device, max(count, 1), _THREADS, unroll)
    return Emission((Launch(spec, (grid, 1, 1), (_THREADS, 1, 1), tuple(args)),))
