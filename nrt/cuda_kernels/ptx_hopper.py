"""PTX of Hopper (sm_90a) as Numba intrinsics: barriers, the copy engine, warpgroup products.

The conventions are those of `ptx`. Shared addresses are those of this block (``.shared::cta``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba.cuda import types

from nrt.cuda_kernels.ptx_asm import asm, with_arity

__all__ = [
    "bar_sync",
    "behind",
    "bulk_commit",
    "bulk_copy_cluster",
    "bulk_wait",
    "bulk_wait_read",
    "cluster_meet",
    "cluster_rank",
    "cluster_sync",
    "f32x4_from_e4m3x4",
    "fence_async_shared",
    "fence_barrier_init",
    "grid_launch",
    "grid_wait",
    "map_to_rank",
    "matrix_descriptor",
    "mbarrier_arrive",
    "mbarrier_arrive_if",
    "mbarrier_expect",
    "mbarrier_init",
    "mbarrier_wait",
    "prefetch_tensor_map",
    "setmaxnreg_dec",
    "setmaxnreg_inc",
    "stmatrix_x4",
    "tma_load_2d",
    "tma_load_2d_multicast",
    "tma_load_im2col",
    "tma_store_2d",
    "wgmma_loop",
    "wgmma_registers",
]

f32 = types.float32
u16 = types.uint16
u32 = types.uint32
i32 = types.int32
i64 = types.int64

mbarrier_init = asm(
    "mbarrier_init", "mbarrier.init.shared::cta.b64 [$0], $1;", [], [u32, u32],
    doc="``mbarrier.init``: a barrier at a shared address that expects ``count`` arrivals a phase.",
)  # fmt: skip
mbarrier_expect = asm(
    "mbarrier_expect", "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", [], [u32, u32],
    doc="``mbarrier.arrive.expect_tx``: arrive, and expect that many bytes from the copy engine.",
)  # fmt: skip
mbarrier_arrive = asm(
    "mbarrier_arrive", "mbarrier.arrive.shared::cta.b64 _, [$0];", [], [u32],
    doc="``mbarrier.arrive``: one arrival.",
)  # fmt: skip
mbarrier_arrive_if = asm(
    "mbarrier_arrive_if",
    "{ .reg .pred p; setp.ne.u32 p, $1, 0; @p mbarrier.arrive.shared::cta.b64 _, [$0]; }",
    [], [u32, u32],
    doc="``mbarrier.arrive`` of the lanes whose second operand is not 0, without a branch.",
)  # fmt: skip
mbarrier_wait = asm(
    "mbarrier_wait",
    "{ .reg .pred p; NRT_WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; "
    "@p bra NRT_DONE; bra NRT_WAIT; NRT_DONE: }",
    [], [u32, u32],
    doc="``mbarrier.try_wait.parity``: until the phase of that parity (0 or 1) is complete.",
)  # fmt: skip
fence_barrier_init = asm(
    "fence_barrier_init", "fence.mbarrier_init.release.cluster; fence.proxy.async;", [], [],
    doc="``fence.mbarrier_init``: make new barriers visible to the copy engine and the cluster.",
)  # fmt: skip
fence_async_shared = asm(
    "fence_async_shared", "fence.proxy.async.shared::cta;", [], [],
    doc="``fence.proxy.async``: ordinary writes to shared memory, new barriers among them, before "
    "what the copy engine does there.",
)  # fmt: skip
prefetch_tensor_map = asm(
    "prefetch_tensor_map", "prefetch.tensormap [$0];", [], [i64],
    doc="``prefetch.tensormap``: bring a tensor map into the cache ahead of its first use.",
)  # fmt: skip
tma_load_2d = asm(
    "tma_load_2d",
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[$0], [$1, {$3, $4}], [$2];",
    [], [u32, i64, u32, i32, i32],
    doc="``cp.async.bulk.tensor.2d``: (shared address, tensor map, barrier, x, y): one box.",
)  # fmt: skip
tma_load_im2col = asm(
    "tma_load_im2col",
    "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
    "[$0], [$1, {$3, $4, $5, $6}], [$2], {$7, $8};",
    [], [u32, i64, u32, i32, i32, i32, i32, u16, u16],
    doc="``cp.async.bulk.tensor.4d`` in im2col mode: (shared address, tensor map, barrier, "
    "channel, w, h, n, filter w, filter h): one column of pixels.",
)  # fmt: skip
tma_load_2d_multicast = asm(
    "tma_load_2d_multicast",
    "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
    ".multicast::cluster [$0], [$1, {$3, $4}], [$2], $5;",
    [], [u32, i64, u32, i32, i32, u16],
    doc="``cp.async.bulk.tensor.2d`` with multicast: as `tma_load_2d`, to the same shared address "
    "and barrier of every block of the cluster whose bit is set in the mask.",
)  # fmt: skip
tma_store_2d = asm(
    "tma_store_2d",
    "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [$0, {$2, $3}], [$1];",
    [], [i64, u32, i32, i32],
    doc="``cp.async.bulk.tensor.2d`` to global memory: (tensor map, shared address, x, y): one "
    "box; what lies outside the tensor is not written.",
)  # fmt: skip
bulk_commit = asm(
    "bulk_commit", "cp.async.bulk.commit_group;", [], [],
    doc="``cp.async.bulk.commit_group``: close the group of this thread's stores.",
)  # fmt: skip
bulk_wait_read = asm(
    "bulk_wait_read", "cp.async.bulk.wait_group.read 0;", [], [],
    doc="``cp.async.bulk.wait_group.read``: until this thread's stores have read shared memory.",
)  # fmt: skip
bulk_wait = asm(
    "bulk_wait", "cp.async.bulk.wait_group 0;", [], [],
    doc="``cp.async.bulk.wait_group``: until this thread's stores are done.",
)  # fmt: skip
stmatrix_x4 = asm(
    "stmatrix_x4", "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};",
    [], [u32, u32, u32, u32, u32],
    doc="``stmatrix``: four 8x8 matrices of 16-bit elements; lane i gives the address of row i & 7 "
    "of matrix i >> 3. The inverse of `ptx.ldmatrix_x4`.",
)  # fmt: skip
cluster_rank = asm(
    "cluster_rank", "mov.u32 $0, %cluster_ctarank;", [u32], [], pure=True,
    doc="``mov.u32`` of ``%cluster_ctarank``: this block's number in its cluster.",
)  # fmt: skip
cluster_sync = asm(
    "cluster_sync", "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;", [], [],
    doc="``barrier.cluster``: until every thread of the cluster's blocks is here, and what they "
    "wrote to shared memory is visible.",
)  # fmt: skip
cluster_meet = asm(
    "cluster_meet", "barrier.cluster.arrive.relaxed; barrier.cluster.wait;", [], [],
    doc="``barrier.cluster`` that orders no memory: no wait for this thread's writes.",
)  # fmt: skip
map_to_rank = asm(
    "map_to_rank", "mapa.shared::cluster.u32 $0, $1, $2;", [u32], [u32, u32], pure=True,
    doc="``mapa``: the cluster address of this shared address in the block of that rank.",
)  # fmt: skip
bulk_copy_cluster = asm(
    "bulk_copy_cluster",
    "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];",
    [], [u32, u32, u32, u32],
    doc="``cp.async.bulk.shared::cluster``: (cluster address, shared address, bytes, cluster "
    "address of a barrier): to another block's shared memory; both a multiple of 16 bytes.",
)  # fmt: skip
setmaxnreg_dec = asm(
    "setmaxnreg_dec", "setmaxnreg.dec.sync.aligned.u32 #0;", [], [],
    doc="``setmaxnreg.dec``: give this warpgroup's registers above N (a literal) back.",
)  # fmt: skip
setmaxnreg_inc = asm(
    "setmaxnreg_inc", "setmaxnreg.inc.sync.aligned.u32 #0;", [], [],
    doc="``setmaxnreg.inc``: raise this warpgroup's registers to N (a literal).",
)  # fmt: skip
bar_sync = asm(
    "bar_sync", "bar.sync $0, $1;", [], [u32, u32],
    doc="``bar.sync``: barrier number (1 to 15) of that many threads; 0 is syncthreads'.",
)  # fmt: skip
grid_wait = asm(
    "grid_wait", "griddepcontrol.wait;", [], [],
    doc="``griddepcontrol.wait``: until the kernels this one depends on have finished.",
)  # fmt: skip
grid_launch = asm(
    "grid_launch", "griddepcontrol.launch_dependents;", [], [],
    doc="``griddepcontrol.launch_dependents``: let the next kernel start its preamble.",
)  # fmt: skip


f32x4_from_e4m3x4 = asm(
    "f32x4_from_e4m3x4",
    "{ .reg .b16 l, h, a, b, c, d; .reg .b32 p, q; mov.b32 {l, h}, $4; "
    "cvt.rn.f16x2.e4m3x2 p, l; cvt.rn.f16x2.e4m3x2 q, h; mov.b32 {a, b}, p; mov.b32 {c, d}, q; "
    "cvt.f32.f16 $0, a; cvt.f32.f16 $1, b; cvt.f32.f16 $2, c; cvt.f32.f16 $3, d; }",
    [f32] * 4, [u32], pure=True,
    doc="Two ``cvt.rn.f16x2.e4m3x2``: the e4m3 of a word, the lowest first, as float32 (sm_89).",
)  # fmt: skip


def _behind(typingctx: Any, pointer: Any) -> Any:
    del typingctx

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        text = ir.InlineAsm(ir.FunctionType(kind, [kind]), "", "=l,0,~{memory}", side_effect=True)
        return builder.call(text, [args[0]])

    return pointer(pointer), codegen


behind = with_arity(
    _behind, "behind", 1,
    "No instruction: the pointer itself, which nothing can read through before this point. Loads "
    "without side effects (``ld.global.nc``) have no order against `grid_wait` but this.",
)  # fmt: skip


_SWIZZLES = {128: 1, 64: 2, 32: 3}


def matrix_descriptor(row: int) -> int:
    """Of a matrix at shared address 0: K innermost, rows and swizzle of ``row`` bytes.

    From 8 rows to the next are ``8 row`` bytes (PTX ISA, matrix descriptor).
    """
    return (1 << 16) | (8 * row // 16 << 32) | (_SWIZZLES[row] << 62)


class _Products(NamedTuple):
    """Of one operand type: elements per 32 bytes, result and operand types, trailing operands."""

    k: int
    types: str
    tail: str


_PRODUCTS = {
    "fp16": _Products(16, "f32.f16.f16", ", 1, 1, 0, 0"),
    "bf16": _Products(16, "f32.bf16.bf16", ", 1, 1, 0, 0"),
    "fp32": _Products(8, "f32.tf32.tf32", ", 1, 1"),
    "fp8e4m3": _Products(32, "f32.e4m3.e4m3", ", 1, 1"),
    "int8": _Products(32, "s32.s8.s8", ""),
    "uint8": _Products(32, "s32.u8.s8", ""),
}


def wgmma_loop(
    dtype: str,
    n: int,
    *,
    stages: int,
    stage_bytes: int,
    row: int = 128,
    resident_bytes: int = 0,
    cluster: bool = False,
) -> Any:
    """An intrinsic: all K blocks of a tile by ``wgmma.mma_async.m64nN``, one ahead of the other.

    ``(acc, a, b, full, empty, frees, slot, parity, count) -> (slot, parity)``. ``acc`` is a local
    array of ``n / 2`` elements, float32 or (of products of bytes) int32, which the products are
    added to. ``a`` and ``b`` are the shared addresses of the operands in the ring's first buffer, K
    innermost, swizzled. For each of ``count`` blocks it waits for the full
    barrier of ``slot``, issues the products (steps of 32 bytes: 16 elements of fp16 and bf16,
    8 of tf32, 32 of fp8 and bytes), and once the block before is done arrives at its buffer's empty
    barrier, in lanes where ``frees`` is not 0. So the tensor cores never wait for a barrier.

    The loop is one statement, and written as one: a wait for products that lies in another
    statement than they makes ptxas serialize every one of them (warning C7515), as does any
    instruction of Numba's between them that touches the accumulators.

    Args:
        dtype: ``fp16``, ``bf16``, ``fp32`` (its products are tf32), ``fp8e4m3``, ``int8`` or
            ``uint8`` (``a`` is; ``b`` is int8).
        n: columns, a multiple of 8 up to 256; of int8 and uint8, one of 16 above 32.
        stages: buffers of the ring.
        stage_bytes: from one buffer to the next.
        row: bytes of a row, and of the swizzle: 128, 64 or 32.
        resident_bytes: not 0: ``b``'s blocks lie so many bytes apart, outside of the ring.
        cluster: ``empty`` is a cluster address.
    """
    kind = _PRODUCTS[dtype]
    # PTX has no unsigned literals of 64 bits above the signed ones.
    matrix = f"0x{matrix_descriptor(row):016X}U"
    whole = kind.types.startswith("s32")
    count = n // 2
    registers = ", ".join(f"${i}" for i in range(count))
    slot, parity, a, b, full, empty, frees, blocks = (f"${count + i}" for i in range(8))
    product = (
        f"wgmma.mma_async.sync.aligned.m64n{n}k{kind.k}.{kind.types} "
        f"{{{registers}}}, da, db, one{kind.tail};"
    )
    window = "shared::cluster" if cluster else "shared::cta"
    arrive = f"mbarrier.arrive.{window}.b64 _, [last];"
    if resident_bytes:
        where = f"mad.lo.u32 at, k, {resident_bytes}, {b};"
    else:
        where = f"mad.lo.u32 at, {slot}, {stage_bytes}, {b};"
    describe = (
        "shr.u32 at, at, 4; and.b32 at, at, 0x3FFF; cvt.u64.u32 {0}, at; or.b64 {0}, {0}, {1};"
    )
    text = " ".join(
        [
            "{ .reg .pred p, one, live; .reg .b32 k, at, bar, last; .reg .b64 da, db;",
            f"setp.eq.b32 one, 0, 0; setp.ne.b32 live, {frees}, 0; mov.b32 k, 0; mov.b32 last, 0;",
            f"setp.eq.u32 p, {blocks}, 0; @p bra NRT_END;",
            f"NRT_BLOCK: mad.lo.u32 bar, {slot}, 8, {full};",
            f"NRT_WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [bar], {parity};",
            "@p bra NRT_READY; bra NRT_WAIT; NRT_READY:",
            f"mad.lo.u32 at, {slot}, {stage_bytes}, {a};",
            describe.format("da", matrix),
            where,
            describe.format("db", matrix),
            "wgmma.fence.sync.aligned;",
            "add.s64 da, da, 2; add.s64 db, db, 2;".join([product] * (row // 32)),
            "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;",
            f"setp.ne.and.u32 p, k, 0, live; @p {arrive}",
            f"mad.lo.u32 last, {slot}, 8, {empty};",
            f"add.u32 {slot}, {slot}, 1; setp.eq.u32 p, {slot}, {stages};",
            f"@p mov.b32 {slot}, 0; @p xor.b32 {parity}, {parity}, 1;",
            f"add.u32 k, k, 1; setp.lt.u32 p, k, {blocks}; @p bra NRT_BLOCK;",
            f"wgmma.wait_group.sync.aligned 0; @live {arrive}",
            "NRT_END: }",
        ]
    )
    letter = "r" if whole else "f"
    # Tied operands follow the others, so that numbers of those come right after the results.
    tied = [str(i) for i in range(count + 2)]
    constraints = [*[f"={letter}"] * count, "=r", "=r", *["r"] * 6, *tied, "~{memory}"]
    element, word = ir.IntType(32) if whole else ir.FloatType(), ir.IntType(32)

    def impl(typingctx: Any, acc: Any, *numbers: Any) -> Any:
        del typingctx, numbers
        signature = types.UniTuple(u32, 2)(acc, *[u32] * 8)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            cells = [builder.gep(data, [ir.Constant(word, k)]) for k in range(count)]
            *inputs, first_slot, first_parity, total = args[1:]
            operands = [
                *inputs, total, *(builder.load(cell) for cell in cells), first_slot, first_parity
            ]  # fmt: skip
            results = ir.LiteralStructType([*[element] * count, word, word])
            shape = ir.FunctionType(results, [v.type for v in operands])
            loop = ir.InlineAsm(shape, text, ",".join(constraints), side_effect=True)
            out = builder.call(loop, operands)
            for k, cell in enumerate(cells):
                builder.store(builder.extract_value(out, k), cell)
            return context.make_tuple(
                builder, sig.return_type, [builder.extract_value(out, count + i) for i in (0, 1)]
            )

        return signature, codegen

    name = f"wgmma_loop_m64n{n}k{kind.k}_{dtype}"
    return with_arity(impl, name, 9, "``wgmma.mma_async``; see `wgmma_loop`.")


def wgmma_registers(dtype: str, n: int) -> Any:
    """An intrinsic: one block of 128 bytes along K, its left operand in registers.

    ``(acc, a0, a1, a2, a3, b)`` adds four products ``wgmma.mma_async.m64nN``, of 32 bytes along K
    each, to ``acc``, a local float32 array of ``n / 2`` elements, and waits for them. ``a0 … a3``
    are local arrays of four words, of this warp's 16 rows as ``ldmatrix`` gives them; ``b`` is the
    shared address of the right operand, swizzled. One statement, as in `wgmma_loop`.

    Args:
        dtype: ``fp16`` or ``bf16``.
        n: columns, a multiple of 8 up to 256.
    """
    kind = _PRODUCTS[dtype]
    count, steps = n // 2, 4
    registers = ", ".join(f"${i}" for i in range(count))
    products = []
    for step in range(steps):
        words = ", ".join(f"${count + 4 * step + i}" for i in range(4))
        # A left operand in registers has no transposition.
        products.append(
            f"wgmma.mma_async.sync.aligned.m64n{n}k{kind.k}.{kind.types} "
            f"{{{registers}}}, {{{words}}}, db, one, 1, 1, 0;"
        )
    text = " ".join(
        [
            "{ .reg .pred one; .reg .b32 at; .reg .b64 db; setp.eq.b32 one, 0, 0;",
            f"shr.u32 at, ${count + 4 * steps}, 4; and.b32 at, at, 0x3FFF; cvt.u64.u32 db, at;",
            f"or.b64 db, db, 0x{matrix_descriptor(128):016X}U;",
            "wgmma.fence.sync.aligned;",
            "add.s64 db, db, 2;".join(products),
            "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }",
        ]
    )
    tied = [str(i) for i in range(count)]
    constraints = [*["=f"] * count, *["r"] * (4 * steps + 1), *tied, "~{memory}"]
    element, word = ir.FloatType(), ir.IntType(32)

    def impl(typingctx: Any, acc: Any, a0: Any, a1: Any, a2: Any, a3: Any, b: Any) -> Any:
        del typingctx, b

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def cells(slot: int, size: int) -> list[Any]:
                data = context.make_array(sig.args[slot])(context, builder, args[slot]).data
                return [builder.gep(data, [ir.Constant(word, k)]) for k in range(size)]

            sums = cells(0, count)
            words = [cell for slot in range(1, 1 + steps) for cell in cells(slot, 4)]
            operands = [
                *(builder.load(cell) for cell in words), args[5],
                *(builder.load(cell) for cell in sums),
            ]  # fmt: skip
            results = ir.LiteralStructType([element] * count)
            shape = ir.FunctionType(results, [v.type for v in operands])
            code = ir.InlineAsm(shape, text, ",".join(constraints), side_effect=True)
            out = builder.call(code, operands)
            for k, cell in enumerate(sums):
                builder.store(builder.extract_value(out, k), cell)
            return context.get_dummy_value()

        return types.void(acc, a0, a1, a2, a3, u32), codegen

    name = f"wgmma_registers_m64n{n}_{dtype}"
    return with_arity(impl, name, 6, "``wgmma.mma_async``; see `wgmma_registers`.")
