"""Every intrinsic compiles, links, and is the instruction that its docstring names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import compiler, fp8, ptx, ptx_hopper
from nrt.cuda_kernels.compiler import Cubin, compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.variant import KernelSpec

# Per intrinsic: operands > results. g: global address, s: shared address, f: float32, r: uint32,
# i: int32, h: uint16 bits, l: int64 (an address, a tensor map's), 0-9: a literal.
SM75 = {
    "ex2": "f>f", "f32_from_f16": "h>f", "f16_from_f32": "f>h", "f32_from_bf16": "h>f",
    "f16x2_from_f32": "ff>r", "f32_from_f16_hi": "r>f", "f32_from_f16_lo": "r>f",
    "f32_from_bf16_hi": "r>f", "f32_from_bf16_lo": "r>f", "float_bits": "f>r", "bits_float": "r>f",
    "ld_global_nc_u16": "g>h", "ld_global_nc_u32": "g>r", "ld_global_nc_v2": "g>rr",
    "ld_global_nc_v4": "g>rrrr", "ld_global_v4": "g>rrrr", "ld_shared_f32": "s>f",
    "ld_shared_u16": "s>h", "ld_shared_u32": "s>r", "ld_shared_v4": "s>rrrr",
    "ld_global_nc_no_allocate_v4": "g>rrrr", "ld_global_cs_nc_v4": "g>rrrr",
    "ld_global_cs_nc_v2": "g>rr", "ld_global_cs_nc_u32": "g>r", "st_global_cs_v4": "grrrr>",
    "st_global_cs_v2": "grr>", "st_global_cs_u32": "gr>",
    "ld_shared_v4_f32": "s>ffff", "ldmatrix_x1": "s>r", "ldmatrix_x1_trans": "s>r",
    "ldmatrix_x2": "s>rr", "ldmatrix_x2_trans": "s>rr", "ldmatrix_x4": "s>rrrr",
    "ldmatrix_x4_trans": "s>rrrr", "lg2": "f>f", "mma_f16_k8": "rrrffff>ffff", "rcp": "f>f",
    "st_global_u16": "gh>", "st_global_u32": "gr>", "st_global_v2": "grr>",
    "st_global_v4": "grrrr>", "st_shared_f32": "sf>", "st_shared_u16": "sh>", "st_shared_u8": "sh>",
    "st_shared_u32": "sr>", "st_shared_v2_f32": "sff>", "st_shared_v4": "srrrr>",
    "tanh_approx": "f>f", "dp4a": "rri>i", "dp4a_u8": "rri>i",
    "ld_global_nc_u16_if": "gr>h", "ld_global_nc_u8_if": "gr>h",
    "ld_global_nc_u32_if": "gr>r", "funnel": "rrr>r", "further_1": "gr>l",
    "further_2": "gr>l", "further_4": "gr>l", "prmt": "rr4660>r",
    "ld_global_nc_v4_if": "gr>rrrr", "s8x4_from_f32": "ffff>r", "select_below": "rrrr>r",
    "red_global_add_u64": "gl>", "red_global_max_u32": "gr>", "red_shared_add_u32": "sr>",
    "ld_shared_v2_f32": "s>ff", "f32x4_from_s8x4": "r>ffff",
    "u8x4_from_f32": "ffff>r", "f32x4_from_u8x4": "r>ffff",
}  # fmt: skip
SM80 = {
    "cp_async_8": "sgr>", "cp_async_16": "sgr>", "cp_async_commit": ">", "cp_async_wait": "1>",
    "bf16_from_f32": "f>h",
    "bf16x2_from_f32": "ff>r", "mma_bf16": "rrrrrrffff>ffff", "mma_f16": "rrrrrrffff>ffff",
    "mma_tf32": "rrrrrrffff>ffff", "mma_s8": "rrrrrriiii>iiii", "mma_u8": "rrrrrriiii>iiii",
    "tf32_from_f32": "f>r",
    "max_f16x2": "rr>r", "max_bf16x2": "rr>r", "f16x2_pair": "ff>r",
}  # fmt: skip
SM89 = {"e4m3_from_f32": "f>r", "e4m3x4_from_f32": "ffff>r", "f32_from_e4m3": "r2>f"}
SM90 = {
    "bar_sync": "rr>", "bulk_commit": ">", "bulk_wait": ">", "bulk_wait_read": ">",
    "cluster_meet": ">", "cluster_rank": ">r", "cluster_sync": ">", "bulk_copy_cluster": "rsrr>",
    "map_to_rank": "rr>r", "stmatrix_x4": "srrrr>", "tma_load_2d_multicast": "slsiih>",
    "tma_store_2d": "lsii>", "fence_async_shared": ">", "fence_barrier_init": ">",
    "grid_launch": ">", "grid_wait": ">", "mbarrier_arrive": "s>", "mbarrier_expect": "sr>",
    "mbarrier_init": "sr>", "mbarrier_wait": "sr>", "prefetch_tensor_map": "l>",
    "setmaxnreg_dec": "40>", "mbarrier_arrive_if": "sr>",
    "setmaxnreg_inc": "240>", "tma_load_2d": "slsii>", "tma_load_im2col": "slsiiiihh>",
    "f32x4_from_e4m3x4": "r>ffff",
}  # fmt: skip
GROUPS = {
    "sm_75": (ptx, SM75), "sm_80": (ptx, SM80), "sm_89": (fp8, SM89), "sm_90a": (ptx_hopper, SM90),
}  # fmt: skip
ADDRESSES = {"at", "shared_address", "ahead"}  # used by every kernel, or moved pointers
MAKERS = {"MmaStatement", "mma_statement", "wgmma_loop"}

POINTERS = {"f": types.float32, "r": types.uint32, "i": types.int32, "h": types.uint16}


def _operands(form: str) -> list[str]:
    return re.findall(r"\d+|[a-z]", form)


def _kernel(arch: str) -> tuple[Any, Any]:
    """All intrinsics of a group, one after the other, on values that the compiler cannot know."""
    module, table = GROUPS[arch]
    lines = [
        "def kernel(f, r, i, h, maps):",
        "    tile = cuda.shared.array(1024, u32)",
        "    base = shared_address(tile)",
        "    t = u32(cuda.threadIdx.x)",
    ]
    place = 0
    for name, form in table.items():
        left, _, right = form.partition(">")
        args = []
        for kind in _operands(left):
            place += 1
            args.append(
                {
                    "g": f"at(r, u32(t + u32({4 * place})))",
                    "s": f"u32(base + u32({16 * (place % 64)}))",
                    "l": f"maps[u32(t + u32({place}))]",
                }.get(kind, kind if kind.isdigit() else f"{kind}[u32(t + u32({place}))]")
            )
        call = f"{name}({', '.join(args)})"
        results = [f"v{place}_{j}" for j in range(len(right))]
        lines.append(f"    {', '.join(results)} = {call}" if results else f"    {call}")
        for kind, result in zip(right, results, strict=True):
            place += 1
            array = "maps" if kind == "l" else kind
            lines.append(f"    {array}[u32(t + u32({1000 + place}))] = {result}")
    names = ("at", "shared_address")
    scope = {"cuda": cuda, "u32": types.uint32, **{n: getattr(ptx, n) for n in names}}
    scope |= {name: getattr(module, name) for name in table}
    exec("\n".join(lines), scope)
    pointers = [types.CPointer(POINTERS[k]) for k in "frih"]
    return scope["kernel"], types.void(*pointers, types.CPointer(types.int64))


def _wgmma(dtype: str, n: int) -> tuple[Any, Any]:
    loop = ptx_hopper.wgmma_loop(dtype, n, stages=4, stage_bytes=32768)
    count = n // 2
    element = types.int32 if dtype in ("int8", "uint8") else types.float32

    def kernel(y, a, b, full, empty, blocks):
        acc = cuda.local.array(count, element)
        for k in range(count):
            acc[k] = element(0)
        slot, parity = loop(
            acc, a, b, full, empty, types.uint32(1), types.uint32(0), types.uint32(0), blocks
        )
        for k in range(count):
            y[types.uint32(k)] = acc[k]
        y[types.uint32(count)] = element(slot + parity)

    return kernel, types.void(types.CPointer(element), *[types.uint32] * 5)


def _fp8_kernel() -> tuple[Any, Any]:
    def kernel(x, y):
        a = fp8.f32_from_e4m3(x[types.uint32(0)], 1)
        b = fp8.f32_from_e4m3(x[types.uint32(1)], 2)
        y[types.uint32(0)] = fp8.e4m3x4_from_f32(a, b, b, a)
        y[types.uint32(1)] = fp8.e4m3_from_f32(a)

    return kernel, types.void(types.CPointer(types.uint32), types.CPointer(types.uint32))


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
def test_fp8_is_converted_by_what_the_target_has(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, cubin = compiled("_fp8_kernel", (), arch, monkeypatch)
    found = [len(re.findall(rf"cvt\.rn\.{name}", text)) for name in (
        r"f16x2\.e4m3x2", r"satfinite\.e4m3x2\.f32")]  # fmt: skip
    assert found == ([0, 0] if arch == "sm_80" else [2, 3])
    assert cubin.spills == 0


def _wgmma_registers(dtype: str, n: int) -> tuple[Any, Any]:
    multiply = ptx_hopper.wgmma_registers(dtype, n)
    count = n // 2

    def kernel(y, words, b):
        t = types.uint32(cuda.threadIdx.x)
        acc = cuda.local.array(count, types.float32)
        for k in range(count):
            acc[k] = types.float32(0)
        a0 = cuda.local.array(4, types.uint32)
        a1 = cuda.local.array(4, types.uint32)
        a2 = cuda.local.array(4, types.uint32)
        a3 = cuda.local.array(4, types.uint32)
        for k in range(4):
            a0[k] = words[types.uint32(t + types.uint32(k))]
            a1[k] = words[types.uint32(t + types.uint32(k + 4))]
            a2[k] = words[types.uint32(t + types.uint32(k + 8))]
            a3[k] = words[types.uint32(t + types.uint32(k + 12))]
        multiply(acc, a0, a1, a2, a3, b)
        for k in range(count):
            y[types.uint32(k)] = acc[k]

    return kernel, types.void(types.CPointer(types.float32), types.CPointer(types.uint32),
                              types.uint32)  # fmt: skip


def compiled(
    factory: str, params: tuple[Any, ...], arch: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Cubin]:
    """PTX and cubin."""
    texts: list[str] = []
    stable = compiler._stable_names

    def keep(text: str, entry: str) -> str:
        texts.append(stable(text, entry))
        return texts[-1]

    monkeypatch.setattr(compiler, "_stable_names", keep)
    spec = KernelSpec(f"{__name__}:{factory}", params, 128)
    cubin = compile_kernel(spec, ARCHS[arch], cache=False)
    return texts[0], cubin


def instruction(name: str, module: Any) -> re.Pattern[str]:
    """The instruction that the docstring names; modifiers may stand between those it names."""
    found = re.search(r"``([a-z][\w.:]*)", getattr(module, name).__doc__)
    assert found, f"{name}: its docstring names no instruction"
    return re.compile(r"[\w.:]*\.".join(map(re.escape, found.group(1).split("."))))


def test_the_table_covers_every_intrinsic() -> None:
    assert set(SM75) | set(SM80) | ADDRESSES | MAKERS == set(ptx.__all__) | {"wgmma_loop"}
    assert set(SM89) | {"decoded", "encoded"} == set(fp8.__all__)
    makers = {"wgmma_loop", "wgmma_registers", "behind", "matrix_descriptor"}
    assert set(SM90) | makers == set(ptx_hopper.__all__)
    for module in (ptx, fp8, ptx_hopper):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_89", "sm_90a"])
def test_intrinsics_are_the_instructions_they_name(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, cubin = compiled("_kernel", (arch,), arch, monkeypatch)
    assert cubin.code.startswith(b"\x7fELF")
    module, table = GROUPS[arch]
    missing = [n for n in table if not instruction(n, module).search(text)]
    assert missing == []


@pytest.mark.parametrize(("dtype", "short"), [("fp16", "f16"), ("bf16", "bf16")])
def test_wgmma_from_registers(dtype: str, short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, cubin = compiled("_wgmma_registers", (dtype, 64), "sm_90a", monkeypatch)
    assert text.count(f"wgmma.mma_async.sync.aligned.m64n64k16.f32.{short}.{short}") == 4
    # One block, waited for in its own statement; the left operand has no descriptor.
    assert text.count("add.s64 db, db, 2") == 3
    assert text.count("wgmma.wait_group.sync.aligned 0") == 1
    assert "da" not in re.findall(r"\bda\b", text)
    assert cubin.spills == 0


@pytest.mark.parametrize(
    ("dtype", "n", "product"),
    [
        ("fp16", 64, "m64n64k16.f32.f16.f16"),
        ("bf16", 128, "m64n128k16.f32.bf16.bf16"),
        ("fp32", 96, "m64n96k8.f32.tf32.tf32"),
        ("fp8e4m3", 256, "m64n256k32.f32.e4m3.e4m3"),
        ("int8", 128, "m64n128k32.s32.s8.s8"),
        ("uint8", 192, "m64n192k32.s32.u8.s8"),
    ],
)
def test_wgmma_loops(dtype: str, n: int, product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, cubin = compiled("_wgmma", (dtype, n), "sm_90a", monkeypatch)
    assert text.count(f"wgmma.mma_async.sync.aligned.{product}") == 4
    assert text.count("add.s64 da, da, 2") == 3
    # One block's products are in flight while the next one's are issued.
    assert text.count("wgmma.wait_group.sync.aligned 1;") == 1
    assert text.count("wgmma.wait_group.sync.aligned 0;") == 1
    assert cubin.spills == 0


def test_a_literal_must_be_one() -> None:
    def kernel(x):
        ptx.cp_async_wait(x[0])

    with pytest.raises(Exception, match="cp_async_wait"):
        cuda.compile(
            kernel, types.void(types.CPointer(types.uint32)), cc=(8, 0), output="ptx",
            device=False, abi="numba",
        )  # fmt: skip


def test_all_inline_assembly_lies_in_two_files() -> None:
    folder = Path(ptx.__file__).parent
    found = {p.name for p in folder.glob("*.py") if "InlineAsm" in p.read_text()}
    assert found <= {"ptx_asm.py", "ptx_hopper.py"}
