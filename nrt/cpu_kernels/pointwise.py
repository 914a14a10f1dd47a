"""Fused elementwise nodes, casts and copies between any strides.

Dimensions are collapsed as far as all operands allow; the innermost becomes the columns of a rows
function (`nrt.cpu_kernels.codegen`), the others its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nrt.cpu_kernels.codegen import LOADABLE, RowsFunction, column_class, rows_function
from nrt.cpu_kernels.layout import broadcast_strides, collapse
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import DType
from nrt.ir.op import Array
from nrt.ir.ops import OPS, Cast, Dropout, Elementwise, Identity, MultiPointwise, Reformat
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Builder, Program, identity
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["Pointwise", "bind_rows", "bind_strided", "cast_program", "refuse_types"]

_COPIES = (Cast, Reformat, Identity, Dropout)
_GRAIN = 1 << 15
"""Elements that are worth a thread: about 10 us of a simple program."""
_COLUMNS = 512
"""Columns of a gathered operand at a time: 512 cache lines of 64 bytes stay in a 32 KiB L1."""


def cast_program(source: DType, target: DType) -> Program:
    """The program that turns ``source`` into ``target``."""
    have, want = kind_of(source), kind_of(target)
    if have == want:
        return identity(have)
    b = Builder(have)
    return b.build(b(f"to_{want}", 0))


def refuse_types(program: Program, dtypes: Sequence[DType]) -> Refusal | None:
    """Why a rows function cannot do this program; ``dtypes`` begin with the outputs'."""
    for dtype in dtypes:
        if dtype.name not in LOADABLE:
            return Refusal(f"no host code loads and stores {dtype}")
    for register, dtype in zip(program.outputs, dtypes, strict=False):
        if program.kinds[register] == "f" and not dtype.is_float:
            return Refusal(f"a float result stored as {dtype} would have to saturate")
    if any(d.name == "fp64" for d in dtypes) and any(i.opcode == "fp16" for i in program.instrs):
        return Refusal("rounding fp64 through fp16 would round twice")
    return None


def bind_strided(program: Program, specs: Sequence[TensorSpec]) -> Callable[[Sequence[int]], None]:
    """Compile ``outputs = program(*inputs)``, which ``specs`` lists in this order; the result takes
    the operands' addresses."""
    shape = specs[0].shape
    if 0 in shape:
        return lambda addresses: None
    sizes, strides = collapse(shape, [broadcast_strides(t, shape) for t in specs])
    cols, outer = sizes[-1], sizes[:-1]
    classes = tuple(column_class(s[-1], cols) for s in strides)
    function = rows_function(program, tuple(t.dtype for t in specs), classes)
    block = _COLUMNS if "g" in classes else cols
    items = [t.dtype.itemsize for t in specs]
    return bind_rows(function, outer, cols, strides, items, block=block)


def bind_rows(
    function: RowsFunction,
    outer: Sequence[int],
    cols: int,
    strides: Sequence[Sequence[int]],
    items: Sequence[int],
    *,
    block: int = 0,
) -> Callable[[Sequence[int]], None]:
    """Call a rows function over a grid of rows, on all threads.

    Args:
        function: what to call.
        outer: sizes of the row dimensions.
        cols: columns of a row.
        strides: per operand, in elements, of the row dimensions and then of the columns.
        items: bytes per element of each operand.
        block: columns of one call; 0 when a row must not be cut.
    """
    from nrt.cpu_kernels.jit import precompile
    from nrt.cpu_kernels.pool import parallel, ranges
    from nrt.cpu_kernels.strided import strided

    steps = [s[-1] for s in strides]
    rows = int(np.prod(outer, dtype=np.int64))
    n = len(strides)
    params = np.array(
        [
            n,
            len(outer),
            block or cols,
            *outer,
            *(s * i for own, i in zip(strides, items, strict=True) for s in own[:-1]),
            *steps,
            *(s * i for s, i in zip(steps, items, strict=True)),
        ],
        np.int64,
    )
    precompile(strided)
    where = params.ctypes.data
    by_rows = block == 0 or rows >= 8 or rows * 8 >= cols
    units = rows if by_rows else -(-cols // 1024)
    other = cols if by_rows else rows * 1024
    chunks = min(units, ranges(units * other, _GRAIN)) or 1

    def call(addresses: Sequence[int]) -> None:
        base = np.array(addresses, np.int64)
        start = base.ctypes.data

        def work(chunk: int) -> None:
            first, last = units * chunk // chunks, units * (chunk + 1) // chunks
            if by_rows:
                strided(function.address, where, start, first, last, 0, cols)
            else:
                end = min(cols, last * 1024)
                strided(function.address, where, start, 0, rows, first * 1024, end)

        parallel(work, chunks)

    # The parameters' memory must live as long as the call.
    call.__dict__["keep"] = (params, function)
    return call


class Pointwise(HostVariant):
    """Elementwise ops, fused programs, casts and layout changes, any strides."""

    name = "cpu_pointwise"
    ops = tuple(op for op in OPS if issubclass(op, (Elementwise, MultiPointwise, *_COPIES)))
    rank = 10

    def _program(self, problem: Problem) -> Program:
        op: Any = problem.op
        if isinstance(op, _COPIES):
            return cast_program(problem.inputs[0].dtype, problem.y.dtype)
        if isinstance(op, MultiPointwise):
            return op.body
        program: Program = op.program(tuple(kind_of(t.dtype) for t in problem.inputs))
        return program

    def supports(self, problem: Problem) -> Refusal | None:
        specs = (*problem.outputs, *problem.inputs)
        source, target = problem.inputs[0].dtype, problem.y.dtype
        if isinstance(problem.op, _COPIES) and source.is_float and target.kind == "int":
            return Refusal(f"a cast of {source} to {target} has to saturate")
        return refuse_types(self._program(problem), [t.dtype for t in specs])

    def bind(self, problem: Problem, config: Config) -> HostCall:
        del config
        from nrt.cpu_kernels.simd import address_of

        run = bind_strided(self._program(problem), (*problem.outputs, *problem.inputs))

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            del workspace
            run([address_of(a) for a in (*outputs, *inputs)])

        return call
