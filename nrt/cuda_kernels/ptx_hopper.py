"""PTX of Hopper (sm_90a) as Numba intrinsics: barriers, the copy engine, warpgroup products.

The conventions are those of `ptx`. Shared addresses are those of this block (``.shared::cta``).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.cuda import types

from nrt.cuda_kernels.ptx import asm, with_arity

__all__ = [
    "bar_sync",
    "fence_async_shared",
    "fence_barrier_init",
    "grid_launch",
    "grid_wait",
    "mbarrier_arrive",
    "mbarrier_expect",
    "mbarrier_init",
    "mbarrier_wait",
    "prefetch_tensor_map",
    "setmaxnreg_dec",
    "setmaxnreg_inc",
    "tma_load_2d",
    "tma_load_im2col",
    "wgmma_block",
]

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
    doc="``fence.proxy.async``: ordinary writes to shared memory before the copy engine's reads.",
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

_WGMMA_KINDS = {"fp16": "f32.f16.f16", "bf16": "f32.bf16.bf16"}


def wgmma_block(dtype: str, n: int, steps: int) -> Any:
    """An intrinsic ``(acc, a, b)``: one K block of ``wgmma.mma_async.m64nNk16``, added to ``acc``.

    ``acc`` is a local float32 array of ``n / 2`` elements, ``a`` and ``b`` are shared-memory matrix
    descriptors (int64, K innermost, 128-byte swizzle), which advance by 32 bytes per step of 16.
    Fence, products, commit and wait are one statement: a wait that lies in another statement makes
    ptxas serialize every product (warning C7515).

    Args:
        dtype: ``fp16`` or ``bf16``.
        n: columns, a multiple of 8 up to 256.
        steps: products of depth 16 in a block.
    """
    count = n // 2
    registers = ", ".join(f"${i}" for i in range(count))
    lines = [
        "{ .reg .pred q; .reg .b64 da, db; setp.eq.b32 q, 0, 0;",
        f"mov.b64 da, ${count}; mov.b64 db, ${count + 1};",
        "wgmma.fence.sync.aligned;",
    ]
    for step in range(steps):
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{n}k16.{_WGMMA_KINDS[dtype]} "
            f"{{{registers}}}, da, db, q, 1, 1, 0, 0;"
        )
        if step + 1 < steps:
            lines.append("add.s64 da, da, 2; add.s64 db, db, 2;")
    lines.append("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }")
    text = " ".join(lines)
    # Tied operands follow the others, so the descriptors' numbers come right after the results.
    constraints = [*["=f"] * count, "l", "l", *(str(i) for i in range(count)), "~{memory}"]

    def impl(typingctx: Any, acc: Any, *descriptors: Any) -> Any:
        del typingctx, descriptors
        signature = types.void(acc, i64, i64)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            cells = [builder.gep(data, [ir.Constant(ir.IntType(32), k)]) for k in range(count)]
            values = [builder.load(cell) for cell in cells]
            operands = [*args[1:], *values]
            kind = ir.FunctionType(
                ir.LiteralStructType([ir.FloatType()] * count), [v.type for v in operands]
            )
            statement = ir.InlineAsm(kind, text, ",".join(constraints), side_effect=True)
            out = builder.call(statement, operands)
            for k, cell in enumerate(cells):
                builder.store(builder.extract_value(out, k), cell)
            return context.get_dummy_value()

        return signature, codegen

    name = f"wgmma_m64n{n}k16_{dtype}_x{steps}"
    return with_arity(impl, name, 3, "``wgmma.mma_async``; see `wgmma_block`.")
