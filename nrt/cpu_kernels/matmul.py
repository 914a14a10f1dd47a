"""MatMul on the indirect product kernel: any batch broadcasting, any strides, fused epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.cpu_kernels.launch import (
    STAGED,
    Gather,
    Operand,
    Tiling,
    bind_product,
    epilogue_of,
    panel_columns,
    sums_type,
    tiling,
)
from nrt.cpu_kernels.layout import broadcast_strides, collapse
from nrt.cpu_kernels.pointwise import bind_strided, cast_program, refuse_types
from nrt.cpu_kernels.variant import Config, HostCall, HostVariant
from nrt.dtypes import FP32
from nrt.ir.op import Array
from nrt.ir.ops import MatMul
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["MatMulPanels"]

_ALIGN = 64


def _align(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class _View:
    """The problem as batched matrices; strides in elements, ``[*batch, M, K] @ [*batch, K, N]``."""

    batch: tuple[int, ...]
    m: int
    k: int
    n: int
    a: tuple[int, ...]
    b: tuple[int, ...]
    b_batch: tuple[int, ...]


def _view(problem: Problem) -> _View:
    op: Any = problem.op
    a, b = problem.inputs[:2]

    def matrix(spec: TensorSpec, swap: bool, vector: int) -> tuple[list[int], list[int]]:
        shape, strides = list(spec.shape), list(spec.strides)
        if len(shape) == 1:
            shape.insert(vector, 1)
            strides.insert(vector, 0)
        elif swap:
            shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
        return shape, strides

    a_shape, a_strides = matrix(a, op.trans_a, 0)
    b_shape, b_strides = matrix(b, op.trans_b, 1)
    batch = np.broadcast_shapes(tuple(a_shape[:-2]), tuple(b_shape[:-2]))

    def spread(shape: list[int], strides: list[int]) -> tuple[int, ...]:
        lead = [0 if d == 1 else s for d, s in zip(shape[:-2], strides[:-2], strict=True)]
        return (*[0] * (len(batch) - len(lead)), *lead, *strides[-2:])

    return _View(
        batch, a_shape[-2], a_shape[-1], b_shape[-1],
        spread(a_shape, a_strides), spread(b_shape, b_strides), tuple(b_shape[:-2]),
    )  # fmt: skip


def _over_output(problem: Problem, view: _View, spec: TensorSpec) -> tuple[int, ...]:
    """Strides of an operand over ``[*batch, M, N]``."""
    a, b = problem.inputs[:2]
    strides = list(broadcast_strides(spec, problem.y.shape))
    if len(b.shape) == 1:
        strides.append(0)
    if len(a.shape) == 1:
        strides.insert(len(strides) - 1, 0)
    assert len(strides) == len(view.batch) + 2
    return tuple(strides)


class MatMulPanels(HostVariant):
    """Packs B in panels (at build time when it is constant) and reads A in place."""

    name = "cpu_matmul_panels"
    ops = (MatMul,)
    rank = 20

    def supports(self, problem: Problem) -> Refusal | None:
        op: Any = problem.op
        a = problem.inputs[0]
        if a.dtype not in STAGED:
            return Refusal(f"operands are {a.dtype}; products are computed on fp32")
        if 0 in problem.y.shape or 0 in a.shape:
            return Refusal("an empty tensor")
        sums, extras = sums_type(a.dtype), problem.inputs[2:]
        stored = [t.dtype for t in problem.outputs]
        program = epilogue_of(op.epilogue, False, stored, sums)
        return refuse_types(program, [*stored, sums, *(t.dtype for t in extras)])

    def configs(self, problem: Problem) -> Sequence[Config]:
        view = _view(problem)
        batch = int(np.prod(view.batch, dtype=np.int64))
        shared = not any(view.b[:-2])
        rows, groups = (view.m * batch, 1) if shared else (view.m, batch)
        return [(t.shape, t.block_rows) for t in tiling(rows, view.n, groups)]

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        if slot != 1:
            return array
        op: Any = problem.op
        matrix = array[:, None] if array.ndim == 1 else array
        if op.trans_b and array.ndim > 1:
            matrix = np.swapaxes(matrix, -1, -2)
        k, n = matrix.shape[-2:]
        nr = panel_columns(config[0])
        panels = -(-n // nr)
        padded = np.zeros((int(np.prod(matrix.shape[:-2])), k, panels * nr), np.float32)
        padded[:, :, :n] = matrix.reshape(-1, k, n)
        return np.ascontiguousarray(padded.reshape(-1, k, panels, nr).transpose(0, 2, 1, 3))

    def _sizes(self, problem: Problem, config: Config) -> tuple[int, int]:
        """Bytes of the copy of A and of packed B in the workspace; 0 where none is needed."""
        view = _view(problem)
        a, b = problem.inputs[:2]
        copy_a = a.dtype is not FP32 or (view.a[-1] != 1 and view.k > 1)
        size_a = a.size * 4 if copy_a else 0
        nr = panel_columns(config[0])
        matrices = int(np.prod(view.b_batch, dtype=np.int64))
        size_b = 0
        if not problem.constants[1]:
            size_b = matrices * view.k * -(-view.n // nr) * nr * 4
        if b.dtype is not FP32 and not problem.constants[1]:
            size_b = _align(size_b) + b.size * 4
        return _align(size_a), size_b

    def workspace(self, problem: Problem, config: Config) -> int:
        size_a, size_b = self._sizes(problem, config)
        return size_a + size_b

    def bind(self, problem: Problem, config: Config) -> HostCall:
        from nrt.cpu_kernels.simd import address_of

        view = _view(problem)
        a, b = problem.inputs[:2]
        size_a, _ = self._sizes(problem, config)
        a_strides = view.a
        stage = None
        if size_a:
            op: Any = problem.op
            rank = len(a.shape)
            order = tuple(range(rank - 2)) + ((rank - 1, rank - 2) if rank > 1 else (0,))
            dense = TensorSpec.dense(a.shape, FP32, order if op.trans_a and rank > 1 else None)
            stage = bind_strided(cast_program(a.dtype, FP32), (dense, a))
            staged = Problem(
                problem.op, (dense, *problem.inputs[1:]), problem.outputs, problem.constants
            )
            a_strides = _view(staged).a
        pack = None if problem.constants[1] else _bind_pack(view, b, config)
        run = _bind(problem, config, view, a_strides)

        def call(inputs: Sequence[Array], outputs: Sequence[Array], workspace: Array) -> None:
            left, right, *extras = inputs
            a_at, b_at = address_of(left), address_of(right)
            scratch = address_of(workspace) if stage or pack else 0
            if stage is not None:
                stage([scratch, a_at])
                a_at = scratch
            if pack is not None:
                b_at = pack(scratch + size_a, b_at)
            run([a_at, b_at, *(address_of(t) for t in (*outputs, *extras))])

        return call


def _bind_pack(view: _View, b: TensorSpec, config: Config) -> Any:
    """Packs a B that is computed at run time: ``pack(scratch, address) -> address of the
    panels``.
    """
    from nrt.cpu_kernels.jit import precompile
    from nrt.cpu_kernels.pool import parallel, ranges
    from nrt.cpu_kernels.product import pack_panels

    nr = panel_columns(config[0])
    panels = -(-view.n // nr)
    matrices = int(np.prod(view.b_batch, dtype=np.int64))
    each = view.k * panels * nr * 4
    convert = None
    spec = b
    if b.dtype is not FP32:
        spec = TensorSpec(b.shape, FP32, TensorSpec.dense(b.shape, FP32).strides)
        convert = bind_strided(cast_program(b.dtype, FP32), (spec, b))
    swap = len(b.shape) > 1 and view.b[-2:] == (b.strides[-1], b.strides[-2])
    swap = swap and b.strides[-1] != b.strides[-2]
    step_k, step_n = view.b[-2:]
    if convert is not None and len(b.shape) > 1:
        step_k, step_n = spec.strides[:-3:-1] if swap else spec.strides[-2:]
    elif convert is not None:
        step_k, step_n = 1, 0
    lead = [range(d) for d in spec.shape[:-2]]
    offsets = [0]
    for sizes, stride in zip(lead, spec.strides[:-2], strict=True):
        offsets = [o + i * stride * 4 for o in offsets for i in sizes]
    kernel = precompile(pack_panels)
    units = matrices * panels
    chunks = max(1, min(units, ranges(units * view.k * nr, 1 << 16)))

    def pack(scratch: int, address: int) -> int:
        if convert is not None:
            plain = scratch + _align(matrices * each)
            convert([plain, address])
            address = plain

        def work(chunk: int) -> None:
            unit, last = units * chunk // chunks, units * (chunk + 1) // chunks
            while unit < last:
                matrix, panel = divmod(unit, panels)
                stop = min(panels, panel + last - unit)
                kernel(
                    address + offsets[matrix], step_k, step_n, view.k, view.n, nr,
                    scratch + matrix * each, panel, stop,
                )  # fmt: skip
                unit += stop - panel

        parallel(work, chunks)
        return scratch

    return pack


def _bind(problem: Problem, config: Config, view: _View, a: tuple[int, ...]) -> Any:
    op: Any = problem.op
    specs = [*problem.outputs, *problem.inputs[2:]]
    strides = [_over_output(problem, view, s) for s in specs]
    tile = Tiling(*config)
    nr = panel_columns(tile.shape)
    matrix_bytes = view.k * -(-view.n // nr) * nr * 4
    shared = not any(view.b[:-2])
    rank = len(view.batch)
    # Batch dimensions that share B are rows like M; the others are groups.
    sizes = (*view.batch, view.m) if shared else (view.m,)
    first = 0 if shared else rank
    row_sizes, row_strides = collapse(sizes, [s[first : rank + 1] for s in (*strides, a)])
    lines = row_sizes[-3:]
    fill = 3 - len(lines)
    images, count, line = (*(1,) * fill, *lines)
    spread = [(*(0,) * fill, *s[-3:]) for s in row_strides]
    outer = row_sizes[:-3]
    groups: list[tuple[int, ...]] = [()]
    group_sizes = outer if shared else view.batch
    for size in group_sizes:
        groups = [(*g, i) for g in groups for i in range(size)]
    group_strides = [s[:-3] for s in row_strides] if shared else [s[:rank] for s in (*strides, a)]
    items = [s.dtype.itemsize for s in specs]
    own = (1,) * (rank - len(view.b_batch)) + view.b_batch
    shifts = []
    for index in groups:
        b_index = 0
        if not shared:
            for i, size in zip(index, own, strict=True):
                b_index = b_index * size + (i if size > 1 else 0)

        def offset(operand: tuple[int, ...], index: tuple[int, ...] = index) -> int:
            return sum(i * s for i, s in zip(index, operand, strict=True))

        shifts.append(
            [
                4 * offset(group_strides[-1]),
                b_index * matrix_bytes,
                *(offset(s) * b for s, b in zip(group_strides[:-1], items, strict=True)),
            ]
        )
    operands = [
        Operand(spec.dtype, row[0], row[1], row[2], full[-1])
        for spec, row, full in zip(specs, spread[:-1], strides, strict=True)
    ]
    x_n, x_h, x_w = (4 * s for s in spread[-1])
    gather = Gather(images, count, line, 1, 1, view.k, count, line, x_n, x_h, x_w)
    sums = sums_type(problem.inputs[0].dtype)
    results = len(problem.outputs)
    outs, extras = operands[:results], operands[results:]
    program = epilogue_of(op.epilogue, False, [o.dtype for o in outs], sums)
    return bind_product(gather, view.n, tile, program, outs, extras, shifts, sums)
