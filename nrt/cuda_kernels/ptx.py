"""PTX instructions as Numba intrinsics; those of Hopper are in `ptx_hopper`, fp8's in `fp8`.

Every intrinsic names its PTX instruction. Global addresses are int64 (made by `at`), shared
addresses are uint32 (made by `shared_address`); 16-bit floats travel as raw bits in integers and
arithmetic is float32. Numba widens ``uint32 op uint32`` to uint64, so kernels wrap index arithmetic
in ``u32(...)``; never add an unsigned value to an int64 address: use ``at(pointer, index)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

from nrt.cuda_kernels.ptx_asm import asm

__all__ = [
    "MmaStatement",
    "ahead",
    "at",
    "cp_async_8",
    "cp_async_16",
    "cp_async_commit",
    "cp_async_wait",
    "dp4a",
    "dp4a_u8",
    "ex2",
    "f32_from_bf16",
    "f32_from_f16",
    "f16_from_f32",
    "bf16_from_f32",
    "f16x2_from_f32",
    "f16x2_pair",
    "bf16x2_from_f32",
    "f32_from_f16_hi",
    "f32_from_f16_lo",
    "f32_from_bf16_hi",
    "f32_from_bf16_lo",
    "f32x4_from_s8x4",
    "f32x4_from_u8x4",
    "float_bits",
    "funnel",
    "bits_float",
    "further_1",
    "further_2",
    "further_4",
    "ld_global_cs_nc_u32",
    "ld_global_cs_nc_v2",
    "ld_global_cs_nc_v4",
    "ld_global_nc_no_allocate_v4",
    "ld_global_nc_u16",
    "ld_global_nc_u16_if",
    "ld_global_nc_u32",
    "ld_global_nc_u32_if",
    "ld_global_nc_u8_if",
    "ld_global_nc_v2",
    "ld_global_nc_v4",
    "ld_global_nc_v4_if",
    "ld_global_v4",
    "ld_shared_f32",
    "ld_shared_u16",
    "ld_shared_u32",
    "ld_shared_v2_f32",
    "ld_shared_v4",
    "ld_shared_v4_f32",
    "ldmatrix_x1",
    "ldmatrix_x1_trans",
    "ldmatrix_x2",
    "ldmatrix_x2_trans",
    "ldmatrix_x4",
    "ldmatrix_x4_trans",
    "lg2",
    "mma_bf16",
    "mma_f16",
    "mma_f16_k8",
    "mma_tf32",
    "mma_s8",
    "mma_u8",
    "mma_statement",
    "max_bf16x2",
    "max_f16x2",
    "prmt",
    "rcp",
    "red_global_add_u64",
    "red_global_max_u32",
    "red_shared_add_u32",
    "s8x4_from_f32",
    "select_below",
    "shared_address",
    "st_global_cs_u32",
    "st_global_cs_v2",
    "st_global_cs_v4",
    "st_global_u16",
    "st_global_u32",
    "st_global_v2",
    "st_global_v4",
    "st_shared_f32",
    "st_shared_u16",
    "st_shared_u32",
    "st_shared_u8",
    "st_shared_v2_f32",
    "st_shared_v4",
    "tanh_approx",
    "tf32_from_f32",
    "u8x4_from_f32",
]

f32 = types.float32
u16 = types.uint16
u32 = types.uint32
i32 = types.int32
i64 = types.int64

# -- addresses -------------------------------------------------------------------------------------


@intrinsic
def at(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Address (int64) of element ``index`` (taken as uint32) of a pointer parameter."""
    del typingctx
    signature = i64(pointer, u32)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        del context, sig
        address, offset = args
        wide = builder.zext(offset, ir.IntType(64))
        return builder.ptrtoint(builder.gep(address, [wide]), ir.IntType(64))

    del index
    return signature, codegen


@intrinsic
def ahead(typingctx: Any, pointer: Any, index: Any) -> Any:
    """The pointer to element ``index`` (taken as uint32): what is added to it folds into loads."""
    del typingctx

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        del context, sig
        return builder.gep(args[0], [builder.zext(args[1], ir.IntType(64))])

    del index
    return pointer(pointer, u32), codegen


@intrinsic
def shared_address(typingctx: Any, array: Any) -> Any:
    """Address (uint32) of a shared array in the shared window, for ``.shared`` instructions."""
    del typingctx

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        window = builder.addrspacecast(data, ir.IntType(8).as_pointer(3))
        return builder.ptrtoint(window, ir.IntType(32))

    return u32(array), codegen


def _further(itemsize: int) -> Any:
    return asm(
        f"further_{itemsize}", f"mad.wide.u32 $0, $2, {itemsize}, $1;", [i64], [i64, u32],
        pure=True,
        doc=f"``mad.wide.u32``: the address ``index`` elements of {itemsize} bytes further on, in "
        "one instruction.",
    )  # fmt: skip


further_1, further_2, further_4 = (_further(size) for size in (1, 2, 4))

# -- global memory ---------------------------------------------------------------------------------

ld_global_nc_v4 = asm(
    "ld_global_nc_v4",
    "ld.global.nc.v4.u32 {$0, $1, $2, $3}, [$4];",
    [u32] * 4, [i64], pure=True,
    doc="``ld.global.nc.v4.u32``: 16 bytes of data that no one writes during the kernel.",
)  # fmt: skip
ld_global_nc_v2 = asm(
    "ld_global_nc_v2", "ld.global.nc.v2.u32 {$0, $1}, [$2];", [u32] * 2, [i64], pure=True,
    doc="``ld.global.nc.v2.u32``: 8 bytes of read-only data.",
)  # fmt: skip
ld_global_nc_u32 = asm(
    "ld_global_nc_u32", "ld.global.nc.u32 $0, [$1];", [u32], [i64], pure=True,
    doc="``ld.global.nc.u32``: 4 bytes of read-only data.",
)  # fmt: skip
ld_global_nc_u16 = asm(
    "ld_global_nc_u16", "ld.global.nc.u16 $0, [$1];", [u16], [i64], pure=True,
    doc="``ld.global.nc.u16``: 2 bytes of read-only data.",
)  # fmt: skip
ld_global_nc_no_allocate_v4 = asm(
    "ld_global_nc_no_allocate_v4",
    "ld.global.nc.L1::no_allocate.v4.u32 {$0, $1, $2, $3}, [$4];",
    [u32] * 4, [i64], pure=True,
    doc="``ld.global.nc.L1::no_allocate.v4.u32``: 16 bytes of read-only data, not kept in the L1 "
    "(sm_70).",
)  # fmt: skip
ld_global_cs_nc_v4 = asm(
    "ld_global_cs_nc_v4", "ld.global.cs.nc.v4.u32 {$0, $1, $2, $3}, [$4];",
    [u32] * 4, [i64], pure=True,
    doc="``ld.global.cs.nc.v4.u32``: 16 bytes of read-only data that is read once: first to be "
    "evicted, from L1 and L2.",
)  # fmt: skip
ld_global_cs_nc_v2 = asm(
    "ld_global_cs_nc_v2", "ld.global.cs.nc.v2.u32 {$0, $1}, [$2];", [u32] * 2, [i64], pure=True,
    doc="``ld.global.cs.nc.v2.u32``: 8 bytes, as `ld_global_cs_nc_v4`.",
)  # fmt: skip
ld_global_cs_nc_u32 = asm(
    "ld_global_cs_nc_u32", "ld.global.cs.nc.u32 $0, [$1];", [u32], [i64], pure=True,
    doc="``ld.global.cs.nc.u32``: 4 bytes, as `ld_global_cs_nc_v4`.",
)  # fmt: skip
ld_global_nc_u16_if = asm(
    "ld_global_nc_u16_if",
    "{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.u16 $0, 0; @p ld.global.nc.u16 $0, [$1]; }",
    [u16], [i64, u32], memory=False,
    doc="``ld.global.nc.u16``: 2 bytes of read-only data, or 0 where the second operand is 0. It "
    "stays where it stands, so that it may run far ahead of its use.",
)  # fmt: skip
ld_global_nc_u8_if = asm(
    "ld_global_nc_u8_if",
    "{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.u16 $0, 0; @p ld.global.nc.u8 $0, [$1]; }",
    [u16], [i64, u32], memory=False,
    doc="``ld.global.nc.u8``: a byte of read-only data, as `ld_global_nc_u16_if`.",
)  # fmt: skip
ld_global_nc_u32_if = asm(
    "ld_global_nc_u32_if",
    "{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.u32 $0, 0; @p ld.global.nc.u32 $0, [$1]; }",
    [u32], [i64, u32], memory=False,
    doc="``ld.global.nc.u32``: 4 bytes of read-only data, as `ld_global_nc_u16_if`.",
)  # fmt: skip
ld_global_nc_v4_if = asm(
    "ld_global_nc_v4_if",
    "{ .reg .pred p; setp.ne.u32 p, $5, 0; mov.u32 $0, 0; mov.u32 $1, 0; mov.u32 $2, 0; "
    "mov.u32 $3, 0; @p ld.global.nc.v4.u32 {$0, $1, $2, $3}, [$4]; }",
    [u32] * 4, [i64, u32], memory=False,
    doc="``ld.global.nc.v4.u32``: 16 bytes of read-only data, or zeros where the second operand is "
    "0. It stays where it stands, as `ld_global_nc_u16_if`.",
)  # fmt: skip
ld_global_v4 = asm(
    "ld_global_v4", "ld.global.v4.u32 {$0, $1, $2, $3}, [$4];", [u32] * 4, [i64],
    doc="``ld.global.v4.u32``: 16 bytes.",
)  # fmt: skip
st_global_v4 = asm(
    "st_global_v4", "st.global.v4.u32 [$0], {$1, $2, $3, $4};", [], [i64, u32, u32, u32, u32],
    doc="``st.global.v4.u32``: 16 bytes.",
)  # fmt: skip
st_global_v2 = asm(
    "st_global_v2", "st.global.v2.u32 [$0], {$1, $2};", [], [i64, u32, u32],
    doc="``st.global.v2.u32``: 8 bytes.",
)  # fmt: skip
st_global_u32 = asm(
    "st_global_u32", "st.global.u32 [$0], $1;", [], [i64, u32], doc="``st.global.u32``: 4 bytes."
)
st_global_u16 = asm(
    "st_global_u16", "st.global.u16 [$0], $1;", [], [i64, u16], doc="``st.global.u16``: 2 bytes."
)
st_global_cs_v4 = asm(
    "st_global_cs_v4", "st.global.cs.v4.u32 [$0], {$1, $2, $3, $4};",
    [], [i64, u32, u32, u32, u32],
    doc="``st.global.cs.v4.u32``: 16 bytes that are not read soon: first to be evicted.",
)  # fmt: skip
st_global_cs_v2 = asm(
    "st_global_cs_v2", "st.global.cs.v2.u32 [$0], {$1, $2};", [], [i64, u32, u32],
    doc="``st.global.cs.v2.u32``: 8 bytes, as `st_global_cs_v4`.",
)  # fmt: skip
st_global_cs_u32 = asm(
    "st_global_cs_u32", "st.global.cs.u32 [$0], $1;", [], [i64, u32],
    doc="``st.global.cs.u32``: 4 bytes, as `st_global_cs_v4`.",
)  # fmt: skip
red_global_add_u64 = asm(
    "red_global_add_u64", "red.global.add.u64 [$0], $1;", [], [i64, i64],
    doc="``red.global.add.u64``: adds an integer to 8 bytes, in one step for all threads.",
)  # fmt: skip
red_global_max_u32 = asm(
    "red_global_max_u32", "red.global.max.u32 [$0], $1;", [], [i64, u32],
    doc="``red.global.max.u32``: 4 bytes become the larger number, in one step for all threads.",
)  # fmt: skip

# -- shared memory ---------------------------------------------------------------------------------

ld_shared_v4 = asm(
    "ld_shared_v4", "ld.shared.v4.u32 {$0, $1, $2, $3}, [$4];", [u32] * 4, [u32],
    doc="``ld.shared.v4.u32``: 16 bytes.",
)  # fmt: skip
ld_shared_v4_f32 = asm(
    "ld_shared_v4_f32", "ld.shared.v4.f32 {$0, $1, $2, $3}, [$4];", [f32] * 4, [u32],
    doc="``ld.shared.v4.f32``: four floats.",
)  # fmt: skip
ld_shared_v2_f32 = asm(
    "ld_shared_v2_f32", "ld.shared.v2.f32 {$0, $1}, [$2];", [f32] * 2, [u32],
    doc="``ld.shared.v2.f32``: two floats.",
)  # fmt: skip
ld_shared_u32 = asm(
    "ld_shared_u32", "ld.shared.u32 $0, [$1];", [u32], [u32], doc="``ld.shared.u32``: 4 bytes."
)
ld_shared_u16 = asm(
    "ld_shared_u16", "ld.shared.u16 $0, [$1];", [u16], [u32], doc="``ld.shared.u16``: 2 bytes."
)
ld_shared_f32 = asm(
    "ld_shared_f32", "ld.shared.f32 $0, [$1];", [f32], [u32], doc="``ld.shared.f32``: a float."
)
st_shared_v4 = asm(
    "st_shared_v4", "st.shared.v4.u32 [$0], {$1, $2, $3, $4};", [], [u32] * 5,
    doc="``st.shared.v4.u32``: 16 bytes.",
)  # fmt: skip
st_shared_v2_f32 = asm(
    "st_shared_v2_f32", "st.shared.v2.f32 [$0], {$1, $2};", [], [u32, f32, f32],
    doc="``st.shared.v2.f32``: two floats.",
)  # fmt: skip
st_shared_u32 = asm(
    "st_shared_u32", "st.shared.u32 [$0], $1;", [], [u32, u32], doc="``st.shared.u32``: 4 bytes."
)
st_shared_u16 = asm(
    "st_shared_u16", "st.shared.u16 [$0], $1;", [], [u32, u16], doc="``st.shared.u16``: 2 bytes."
)
st_shared_u8 = asm(
    "st_shared_u8", "st.shared.u8 [$0], $1;", [], [u32, u16], doc="``st.shared.u8``: a byte."
)
st_shared_f32 = asm(
    "st_shared_f32", "st.shared.f32 [$0], $1;", [], [u32, f32], doc="``st.shared.f32``: a float."
)
red_shared_add_u32 = asm(
    "red_shared_add_u32", "red.shared.add.u32 [$0], $1;", [], [u32, u32],
    doc="``red.shared.add.u32``: adds an integer to 4 bytes, in one step for all threads.",
)  # fmt: skip

# -- asynchronous copies (sm_80) -------------------------------------------------------------------

cp_async_16 = asm(
    "cp_async_16", "cp.async.cg.shared.global [$0], [$1], 16, $2;", [], [u32, i64, u32],
    doc="``cp.async.cg.shared.global``: 16 bytes from a global to a shared address, of which the "
    "first ``size`` (0 to 16) are read and the rest is zero.",
)  # fmt: skip
cp_async_8 = asm(
    "cp_async_8", "cp.async.ca.shared.global [$0], [$1], 8, $2;", [], [u32, i64, u32],
    doc="``cp.async.ca.shared.global``: the same for 8 bytes.",
)  # fmt: skip
cp_async_commit = asm(
    "cp_async_commit", "cp.async.commit_group;", [], [],
    doc="``cp.async.commit_group``: close the group of copies issued so far.",
)  # fmt: skip
cp_async_wait = asm(
    "cp_async_wait", "cp.async.wait_group #0;", [], [],
    doc="``cp.async.wait_group N``: until at most N (a literal) of this thread's groups run.",
)  # fmt: skip

# -- matrix instructions ---------------------------------------------------------------------------

ldmatrix_x4 = asm(
    "ldmatrix_x4", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];",
    [u32] * 4, [u32],
    doc="``ldmatrix.x4``: four 8x8 matrices of 16-bit elements; lane l gives the address of a row.",
)  # fmt: skip
ldmatrix_x4_trans = asm(
    "ldmatrix_x4_trans", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {$0, $1, $2, $3}, [$4];",
    [u32] * 4, [u32],
    doc="``ldmatrix.x4.trans``: as `ldmatrix_x4`, each matrix transposed.",
)  # fmt: skip
ldmatrix_x2 = asm(
    "ldmatrix_x2", "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {$0, $1}, [$2];", [u32] * 2, [u32],
    doc="``ldmatrix.x2``: two 8x8 matrices of 16-bit elements; lanes 0 to 15 give rows. On sm_75 "
    "the other lanes' addresses must be valid too.",
)  # fmt: skip
ldmatrix_x2_trans = asm(
    "ldmatrix_x2_trans", "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {$0, $1}, [$2];",
    [u32] * 2, [u32],
    doc="``ldmatrix.x2.trans``: as `ldmatrix_x2`, each matrix transposed.",
)  # fmt: skip
ldmatrix_x1 = asm(
    "ldmatrix_x1", "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {$0}, [$1];", [u32], [u32],
    doc="``ldmatrix.x1``: an 8x8 matrix of 16-bit elements; lanes 0 to 7 give rows, as of "
    "`ldmatrix_x2`.",
)  # fmt: skip
ldmatrix_x1_trans = asm(
    "ldmatrix_x1_trans", "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {$0}, [$1];", [u32], [u32],
    doc="``ldmatrix.x1.trans``: as `ldmatrix_x1`, transposed.",
)  # fmt: skip


# Per kind: shape, element types, words of a and of b per lane, accumulator.
_MMA_FORMS: dict[str, tuple[str, str, int, int, Any]] = {
    "f16": ("m16n8k16", "f32.f16.f16.f32", 4, 2, f32),
    "bf16": ("m16n8k16", "f32.bf16.bf16.f32", 4, 2, f32),
    "f16_k8": ("m16n8k8", "f32.f16.f16.f32", 2, 1, f32),
    "tf32": ("m16n8k8", "f32.tf32.tf32.f32", 4, 2, f32),
    "s8": ("m16n8k32", "s32.s8.s8.s32", 4, 2, i32),
    "u8": ("m16n8k32", "s32.u8.s8.s32", 4, 2, i32),
}


class MmaStatement(NamedTuple):
    """A warp-wide ``mma.sync`` as `statement` takes it; the accumulators are tied to the results.

    Attributes:
        text: the statement.
        a, b: words of each operand per lane.
        acc: Numba type of the four accumulators.
    """

    text: str
    a: int
    b: int
    acc: Any


def mma_statement(kind: str) -> MmaStatement:
    """The statement of ``f16``, ``bf16``, ``f16_k8``, ``tf32``, ``s8`` or ``u8``."""
    shape, kinds, a, b, acc = _MMA_FORMS[kind]
    regs = [f"${4 + i}" for i in range(a + b)]
    text = (
        f"mma.sync.aligned.{shape}.row.col.{kinds} {{$0, $1, $2, $3}}, "
        f"{{{', '.join(regs[:a])}}}, {{{', '.join(regs[a:])}}}, {{$0, $1, $2, $3}};"
    )
    return MmaStatement(text, a, b, acc)


def _mma(kind: str, doc: str) -> Any:
    text, a, b, acc = mma_statement(kind)
    return asm(
        f"mma_{kind}", text, [acc] * 4, [u32] * (a + b) + [acc] * 4, pure=True, tied=(0, 1, 2, 3),
        doc=doc,
    )  # fmt: skip


mma_f16 = _mma("f16", "``mma.sync.m16n8k16`` fp16 with float32 accumulators (sm_80).")
mma_bf16 = _mma("bf16", "``mma.sync.m16n8k16`` bf16 with float32 accumulators (sm_80).")
mma_f16_k8 = _mma("f16_k8", "``mma.sync.m16n8k8`` fp16 with float32 accumulators (sm_75).")
mma_tf32 = _mma("tf32", "``mma.sync.m16n8k8`` tf32 with float32 accumulators (sm_80).")
mma_s8 = _mma("s8", "``mma.sync.m16n8k32`` int8 with int32 accumulators (sm_80).")
mma_u8 = _mma("u8", "``mma.sync.m16n8k32.u8.s8`` uint8 by int8 with int32 accumulators (sm_80).")

dp4a = asm(
    "dp4a", "dp4a.s32.s32 $0, $1, $2, $3;", [i32], [u32, u32, i32], pure=True,
    doc="``dp4a.s32.s32``: four int8 products of (a, b), added to c (sm_61).",
)  # fmt: skip
dp4a_u8 = asm(
    "dp4a_u8", "dp4a.u32.s32 $0, $1, $2, $3;", [i32], [u32, u32, i32], pure=True,
    doc="``dp4a.u32.s32``: four products of uint8 in a and int8 in b, added to c (sm_61).",
)  # fmt: skip

# -- conversions and fast functions ----------------------------------------------------------------

f32_from_f16 = asm(
    "f32_from_f16", "cvt.f32.f16 $0, $1;", [f32], [u16], pure=True,
    doc="``cvt.f32.f16``: fp16 bits to float32.",
)  # fmt: skip
f16_from_f32 = asm(
    "f16_from_f32", "cvt.rn.f16.f32 $0, $1;", [u16], [f32], pure=True,
    doc="``cvt.rn.f16.f32``: float32 to fp16 bits, to nearest even.",
)  # fmt: skip
f32_from_bf16 = asm(
    "f32_from_bf16", "mov.b32 $0, {0, $1};", [f32], [u16], pure=True,
    doc="``mov.b32``: bf16 bits to float32 (the upper half).",
)  # fmt: skip
bf16_from_f32 = asm(
    "bf16_from_f32", "cvt.rn.bf16.f32 $0, $1;", [u16], [f32], pure=True,
    doc="``cvt.rn.bf16.f32``: float32 to bf16 bits, to nearest even (sm_80).",
)  # fmt: skip
f16x2_from_f32 = asm(
    "f16x2_from_f32", "{ .reg .b16 l, h; cvt.rn.f16.f32 l, $1; cvt.rn.f16.f32 h, $2; "
    "mov.b32 $0, {l, h}; }",
    [u32], [f32, f32], pure=True,
    doc="Two ``cvt.rn.f16.f32``: pack (low, high) floats into two fp16.",
)  # fmt: skip
f16x2_pair = asm(
    "f16x2_pair", "cvt.rn.f16x2.f32 $0, $2, $1;", [u32], [f32, f32], pure=True,
    doc="``cvt.rn.f16x2.f32``: two fp16 (low, high) in one instruction (sm_80).",
)  # fmt: skip
bf16x2_from_f32 = asm(
    "bf16x2_from_f32", "cvt.rn.bf16x2.f32 $0, $2, $1;", [u32], [f32, f32], pure=True,
    doc="``cvt.rn.bf16x2.f32``: pack (low, high) floats into two bf16 (sm_80).",
)  # fmt: skip
s8x4_from_f32 = asm(
    "s8x4_from_f32", "{ .reg .b32 a, b, c, d; cvt.rni.s32.f32 a, $1; cvt.rni.s32.f32 b, $2; "
    "cvt.rni.s32.f32 c, $3; cvt.rni.s32.f32 d, $4; cvt.pack.sat.s8.s32.b32 d, d, c, 0; "
    "cvt.pack.sat.s8.s32.b32 $0, b, a, d; }",
    [u32], [f32] * 4, pure=True,
    doc="Two ``cvt.pack.sat.s8.s32.b32``: pack four floats, the first lowest, into int8, to "
    "nearest even and saturated; NaN is 0 (sm_72).",
)  # fmt: skip
u8x4_from_f32 = asm(
    "u8x4_from_f32", "{ .reg .b32 a, b, c, d; cvt.rni.s32.f32 a, $1; cvt.rni.s32.f32 b, $2; "
    "cvt.rni.s32.f32 c, $3; cvt.rni.s32.f32 d, $4; cvt.pack.sat.u8.s32.b32 d, d, c, 0; "
    "cvt.pack.sat.u8.s32.b32 $0, b, a, d; }",
    [u32], [f32] * 4, pure=True,
    doc="Two ``cvt.pack.sat.u8.s32.b32``: as `s8x4_from_f32`, into uint8 (sm_72).",
)  # fmt: skip
f32x4_from_s8x4 = asm(
    "f32x4_from_s8x4",
    "{ .reg .b32 w, a, b, c, d; xor.b32 w, $4, 0x80808080; prmt.b32 a, w, 0x4B000000, 0x7440; "
    "prmt.b32 b, w, 0x4B000000, 0x7441; prmt.b32 c, w, 0x4B000000, 0x7442; "
    "prmt.b32 d, w, 0x4B000000, 0x7443; mov.b32 $0, a; mov.b32 $1, b; mov.b32 $2, c; "
    "mov.b32 $3, d; sub.rn.f32 $0, $0, 0f4B000080; sub.rn.f32 $1, $1, 0f4B000080; "
    "sub.rn.f32 $2, $2, 0f4B000080; sub.rn.f32 $3, $3, 0f4B000080; }",
    [f32] * 4, [u32], pure=True,
    doc="Four ``prmt.b32``: the int8 of a word, the lowest first, as float32. Each is put, plus "
    "128, under the exponent of 2^23, and 2^23 + 128 subtracted, which is exact: conversions of "
    "integers run at a fraction of an adder's rate.",
)  # fmt: skip
f32x4_from_u8x4 = asm(
    "f32x4_from_u8x4",
    "{ .reg .b32 a, b, c, d; prmt.b32 a, $4, 0x4B000000, 0x7440; "
    "prmt.b32 b, $4, 0x4B000000, 0x7441; prmt.b32 c, $4, 0x4B000000, 0x7442; "
    "prmt.b32 d, $4, 0x4B000000, 0x7443; mov.b32 $0, a; mov.b32 $1, b; mov.b32 $2, c; "
    "mov.b32 $3, d; sub.rn.f32 $0, $0, 0f4B000000; sub.rn.f32 $1, $1, 0f4B000000; "
    "sub.rn.f32 $2, $2, 0f4B000000; sub.rn.f32 $3, $3, 0f4B000000; }",
    [f32] * 4, [u32], pure=True,
    doc="Four ``prmt.b32``: the uint8 of a word as float32, as of `f32x4_from_s8x4`, but each as "
    "it is under the exponent.",
)  # fmt: skip
f32_from_f16_lo = asm(
    "f32_from_f16_lo", "{ .reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, l; }",
    [f32], [u32], pure=True, doc="``cvt.f32.f16`` of the low half of a pair.",
)  # fmt: skip
f32_from_f16_hi = asm(
    "f32_from_f16_hi", "{ .reg .b16 l, h; mov.b32 {l, h}, $1; cvt.f32.f16 $0, h; }",
    [f32], [u32], pure=True, doc="``cvt.f32.f16`` of the high half of a pair.",
)  # fmt: skip
f32_from_bf16_lo = asm(
    "f32_from_bf16_lo", "shl.b32 $0, $1, 16;", [f32], [u32], pure=True,
    doc="``shl.b32``: the low bf16 of a pair as float32.",
)  # fmt: skip
f32_from_bf16_hi = asm(
    "f32_from_bf16_hi", "and.b32 $0, $1, 0xffff0000;", [f32], [u32], pure=True,
    doc="``and.b32``: the high bf16 of a pair as float32.",
)  # fmt: skip
prmt = asm(
    "prmt", "prmt.b32 $0, $1, $2, #0;", [u32], [u32, u32], pure=True,
    doc="``prmt.b32``: four bytes of two words; digit k of the hexadecimal literal names byte k of "
    "the result, 0 to 3 of the first operand, 4 to 7 of the second.",
)  # fmt: skip
funnel = asm(
    "funnel", "shf.r.wrap.b32 $0, $1, $2, $3;", [u32], [u32] * 3, pure=True,
    doc="``shf.r.wrap.b32``: the 32 bits that begin at bit ``c % 32`` of two words, low and high.",
)  # fmt: skip
select_below = asm(
    "select_below", "{ .reg .pred p; setp.lt.u32 p, $1, $2; selp.b32 $0, $3, $4, p; }",
    [u32], [u32] * 4, pure=True,
    doc="``selp.b32``: c if a < b, else d. No branch: in code that is inlined often, branches "
    "compile slowly.",
)  # fmt: skip
max_f16x2 = asm(
    "max_f16x2", "max.NaN.f16x2 $0, $1, $2;", [u32], [u32, u32], pure=True,
    doc="``max.NaN.f16x2``: the larger of each of two fp16, NaN if one is (sm_80).",
)  # fmt: skip
max_bf16x2 = asm(
    "max_bf16x2", "max.NaN.bf16x2 $0, $1, $2;", [u32], [u32, u32], pure=True,
    doc="``max.NaN.bf16x2``: the larger of each of two bf16, NaN if one is (sm_80).",
)  # fmt: skip
float_bits = asm(
    "float_bits", "mov.b32 $0, $1;", [u32], [f32], pure=True, doc="``mov.b32``: a float's bits."
)
bits_float = asm(
    "bits_float", "mov.b32 $0, $1;", [f32], [u32], pure=True, doc="``mov.b32``: bits as a float."
)
tf32_from_f32 = asm(
    "tf32_from_f32", "cvt.rna.tf32.f32 $0, $1;", [u32], [f32], pure=True,
    doc="``cvt.rna.tf32.f32``: float32 rounded to tf32, as `mma_tf32` takes it (sm_80).",
)  # fmt: skip
ex2 = asm(
    "ex2", "ex2.approx.ftz.f32 $0, $1;", [f32], [f32], pure=True,
    doc="``ex2.approx.ftz.f32``: 2 to the x, 2 ulp.",
)  # fmt: skip
lg2 = asm(
    "lg2", "lg2.approx.ftz.f32 $0, $1;", [f32], [f32], pure=True,
    doc="``lg2.approx.ftz.f32``: logarithm to base 2.",
)  # fmt: skip
rcp = asm(
    "rcp", "rcp.approx.ftz.f32 $0, $1;", [f32], [f32], pure=True,
    doc="``rcp.approx.ftz.f32``: 1/x, 1 ulp.",
)  # fmt: skip
tanh_approx = asm(
    "tanh_approx", "tanh.approx.f32 $0, $1;", [f32], [f32], pure=True,
    doc="``tanh.approx.f32``: relative error 2^-11, for 16-bit results (sm_75).",
)  # fmt: skip
