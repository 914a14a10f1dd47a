"""Matrix products of bytes on the ordinary cores: four products an instruction (``dp4a``, sm_61).

Recipe: `simt_tile` on words of four bytes along the depth. A step of a tile is 8 or 16 words, 32 or
64 deep; a thread of 8x8 results makes 64 ``dp4a``, 512 operations, of four 16-byte loads from
shared memory. Both operands run along the depth: ``a`` as it comes, ``b`` transposed, as constants
are packed. A unit is four words, one load where rows start at multiples of 16 bytes, else four.
The depth is not split: parts would pass the workspace as float32, which is not exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, pointer
from nrt.cuda_kernels.conv_common import (
    ceil_div,
    dot4,
    extra_args,
    extra_types,
    result_type,
    store_width,
    weights_type,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import Extra
from nrt.cuda_kernels.matmul_common import (
    MatMulShape,
    matmul_epilogue,
    matrix_output,
    refuse_matmul,
)
from nrt.cuda_kernels.simt_choice import tile_seconds
from nrt.cuda_kernels.simt_tile import (
    DOT4,
    TILES,
    Operand,
    Tile,
    compile_text,
    gemm_namespace,
    gemm_text,
    unit_step,
)
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import output_rows, row_params
from nrt.dtypes import BYTES, DType
from nrt.ir.op import Array
from nrt.ir.ops import MatMul
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "MatMulDp4a"]

u32 = types.uint32

# The launch grid's third dimension counts matrices.
MAX_BATCHES = 65535

WORD = 4
"""Bytes in a word: strides and the depth are multiples of it."""

_PARAMS = (
    "K", "am", "bn", "size1", "size2", "size3",
    "as0", "as1", "as2", "as3", "bs0", "bs1", "bs2", "bs3",
)  # fmt: skip

# Strides are in bytes, depths in words.
_PROLOGUE = (
    "matrix = u32(cuda.blockIdx.z)",
    "first = u32(0)",
    "last = u32(steps)",
    "z, z3 = divide(matrix, size3)",
    "z, z2 = divide(z, size2)",
    "z0, z1 = divide(z, size1)",
    "a_at = u32(z0 * as0 + z1 * as1 + z2 * as2 + z3 * as3)",
    "b_at = u32(z0 * bs0 + z1 * bs1 + z2 * bs2 + z3 * bs3)",
    "origin = u32(0)",
    "row_base = u32(matrix * M)",
    "col_base = u32(0)",
)


def _operand(name: str, tile: Tile, wide: bool) -> Operand:
    """Loads of ``a`` (rows across) or ``b`` (columns across), four words of depth a unit."""
    extent, start, limit, across, units = {
        "a": (tile.bm, "row0", "M", "am", tile.units_a),
        "b": (tile.bn, "col0", "N", "bn", tile.units_b),
    }[name]
    step = unit_step(True, extent, tile)
    load = []
    for u in range(units):
        load += [
            f"line = u32({start} + {name}_row + u32({u * step}))",
            f"deep = u32(it * u32({tile.bk}) + {name}_k)",
            f"at0 = u32({name}_at + line * {across} + deep * u32({WORD}))",
        ]
        if wide:
            words = ", ".join(f"{name}{u}_{j}" for j in range(4))
            load.append(f"{words} = load_four({name}, at0, (line < {limit}) & (deep < K))")
            continue
        load += [
            f"{name}{u}_{j} = load_one({name}, u32(at0 + u32({WORD * j})), "
            f"(line < {limit}) & (u32(deep + u32({j})) < K))"
            for j in range(4)
        ]
    return Operand(True, (), tuple(load))


_LOADS = """
def load_four(p, i, ok):
    mask = u32(u32(0xFFFFFFFF) if ok else u32(0))
    w0, w1, w2, w3 = ld4(at(p, u32(i & mask)))
    return u32(w0 & mask), u32(w1 & mask), u32(w2 & mask), u32(w3 & mask)


def load_one(p, i, ok):
    mask = u32(u32(0xFFFFFFFF) if ok else u32(0))
    return u32(ld1(at(p, u32(i & mask))) & mask)
"""


def _load(name: str) -> Any:
    """Masked loads: where not ok the first word is read and made zero, without a branch."""
    names = {"at": ptx.at, "ld4": ptx.ld_global_nc_v4, "ld1": ptx.ld_global_nc_u32, "u32": u32}
    return device_function(_LOADS, name, names)


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    tile: tuple[int, ...],
    wide: tuple[bool, bool],
    rows: tuple[tuple[int, int], ...],
    width: int,
) -> tuple[Any, Any]:
    """One block: a tile of one matrix (block z). ``wide`` says of a and b: 16-byte loads."""
    shape = Tile(*tile)
    a, b = (_operand(n, shape, w) for n, w in zip("ab", wide, strict=True))
    text = gemm_text(shape, _PARAMS, _PROLOGUE, a, b, width, arithmetic=DOT4)
    namespace = gemm_namespace(out_dtype, program, extras, rows, width, DOT4)
    namespace["dot4"] = dot4(dtype)
    namespace["final"] = result_type(dtype, out_dtype, program)
    namespace |= {name: _load(name) for name in ("load_four", "load_one")}
    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * (6 + len(_PARAMS)),
    )  # fmt: skip
    return compile_text(text, namespace), signature


class MatMulDp4a(Variant):
    """Tiles in shared memory, ``dp4a``."""

    name = "matmul_dp4a"
    ops = (MatMul,)
    rank = 3

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_matmul(problem, device, BYTES)
        if refusal is not None:
            return refusal
        shape = MatMulShape.of(problem)
        if shape.batches > MAX_BATCHES:
            return Refusal(f"{shape.batches} matrices do not fit the launch grid ({MAX_BATCHES})")
        if shape.k % WORD or shape.k == 0:
            return Refusal(f"the depth is {shape.k}, expected a multiple of {WORD}")
        for name, deep, steps in _strides(problem, shape):
            if deep != 1:
                return Refusal(f"{name} has a step of {deep} along the depth, expected 1")
            odd = [s for s in steps if s % WORD]
            if odd:
                return Refusal(f"{name} has a stride of {odd[0]} bytes, expected whole words")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Tile]:
        shape = MatMulShape.of(problem)
        m, n = shape.m, shape.n
        tiles = [t for t in TILES if t.bm < 2 * max(m, 32) and t.bn < 2 * max(n, 32)]
        return sorted(tiles, key=lambda t: self.estimate(problem, t, device))[:4]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile = Tile(*config)
        shape = MatMulShape.of(problem)
        epilogue = matmul_epilogue(problem)
        y = matrix_output(problem)
        channel = len(y.shape) - 1
        width = 4 if store_width(epilogue, y, channel, 4) == 4 else 1
        constant, pitch = row_params(output_rows(y, channel))
        wide = [not any(s % 16 for s in (shape.k, *s)) for _, _, s in _strides(problem, shape)]
        words = shape.k // WORD
        across = ceil_div(shape.n, tile.bn)
        spec = KernelSpec(
            "nrt.cuda_kernels.matmul_dp4a:_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, tuple(tile),
                tuple(wide), constant, width,
            ),
            tile.threads,
            tile.blocks_per_sm,
        )  # fmt: skip
        (_, _, (am, *_)), (_, _, (bn, *_)) = _strides(problem, shape)
        numbers = (
            shape.m, shape.n, across, ceil_div(words, tile.bk), pitch, y.strides[channel],
            words, am, bn, *shape.batch_numbers()[:11],
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(shape.m, tile.bm) * across, 1, shape.batches),
            (tile.threads, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        shape = MatMulShape.of(problem)
        words = ceil_div(shape.k, WORD)
        seconds = tile_seconds(Tile(*config), shape.m, shape.n, words, shape.batches, device)
        return max(problem.nbytes / device.bandwidth + 2e-6, seconds)

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """b as ``[…, N, K]``."""
        op = problem.op
        assert isinstance(op, MatMul)
        if slot != 1 or array.ndim < 2 or op.trans_b:
            return array
        return np.ascontiguousarray(np.swapaxes(array, -1, -2))


def _strides(
    problem: Problem, shape: MatMulShape
) -> tuple[tuple[str, int, list[int]], tuple[str, int, list[int]]]:
    """Of a and b: name, stride along the depth, and those of rows or columns and of matrices."""
    am, ak = shape.a_strides
    bk, bn = shape.b_strides
    if problem.constants[1]:
        # Packed along the depth; matrices keep their size.
        bk, bn = 1, shape.k if shape.n > 1 else 0
    a = ("a", ak, [am if shape.m > 1 else 0, *(d.a for d in shape.batch)])
    b = ("b", bk, [bn if shape.n > 1 else 0, *(d.b for d in shape.batch)])
    return a, b


VARIANTS: tuple[Variant, ...] = (MatMulDp4a(),)
