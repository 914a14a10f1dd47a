"""Kernels to cubins without a GPU: what is compiled, cached, refused; bytes that never vary."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nrt.cuda_kernels import compiler
from nrt.cuda_kernels.compiler import Cubin, compile_kernel, kernel_key, toolchain
from nrt.cuda_kernels.device import ARCHS, device_for_arch
from nrt.cuda_kernels.variant import KernelSpec
from nrt.dtypes import BF16, FP16, FP32
from nrt.errors import BuildError, CompileError
from nrt.ir.pointwise import Builder

from .tiny_kernels import spec

SM80 = ARCHS["sm_80"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path))
    return tmp_path / "cubins"


def files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*") if p.is_file())


# -- compiling -------------------------------------------------------------------------------------


def test_a_coherent_kernel_takes_no_path_for_read_only_memory() -> None:
    """A vector kernel that may write over its input."""
    b = Builder("f")
    program = b.build(b("max", 0, b.const(0.0)))
    params = (program, (FP16,), (FP16,), ("v",), 1, 8, 1, True, False)
    plain = KernelSpec("nrt.cuda_kernels.pointwise_kernels:_vector_kernel", params, 256)
    coherent = replace(plain, coherent=True)
    before, after = (compiler._ptx(spec_, SM80)[0] for spec_ in (plain, coherent))
    assert before.count("ld.global.nc.v4.u32") == 1
    assert after.count("ld.global.v4.u32") == 1
    assert "ld.global.nc" not in after
    assert kernel_key(plain, SM80) != kernel_key(coherent, SM80)
    assert compile_kernel(coherent, SM80).code != compile_kernel(plain, SM80).code


@pytest.mark.parametrize(
    ("name", "with_nc", "without"),
    [
        ("ld_global_cs_nc_v4", "ld.global.cs.nc.v4.u32", "ld.global.cs.v4.u32"),
        (
            "ld_global_nc_no_allocate_v4",
            "ld.global.nc.L1::no_allocate.v4.u32",
            "ld.global.L1::no_allocate.v4.u32",
        ),
    ],
)
def test_a_coherent_kernel_keeps_cache_hints(name: str, with_nc: str, without: str) -> None:
    plain = KernelSpec("tests.cuda_kernels.test_ptx_values:_load", (name,), 32)
    before, after = (
        compiler._ptx(replace(plain, coherent=coherent), SM80)[0] for coherent in (False, True)
    )
    assert (before.count(with_nc), after.count(without)) == (1, 1)
    assert ".nc" not in after


def test_a_cubin_tells_its_entry_and_resources() -> None:
    cubin = compile_kernel(spec("_shared", 96), SM80, cache=False)
    assert cubin.code.startswith(b"\x7fELF")
    assert b"nrt_shared" in cubin.code
    assert cubin.entry == "nrt_shared"
    assert cubin.shared == 96 * 4
    assert 0 < cubin.registers <= 255
    assert cubin.spills == 0


def test_shared_memory_of_unknown_length_is_not_counted() -> None:
    assert compile_kernel(spec("_dynamic", 40), SM80, cache=False).shared == 40 * 4


def test_local_memory_shows() -> None:
    assert compile_kernel(spec("_spilling"), SM80, cache=False).spills >= 4096


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_architecture_of_the_table_links(arch: str) -> None:
    cubin = compile_kernel(spec("_scale", FP16, 2.0), ARCHS[arch], cache=False)
    # The machine and the architecture stand in the ELF header.
    assert int.from_bytes(cubin.code[18:20], "little") == 190


def test_the_entry_has_one_name_and_the_bytes_do_not_count_compilations() -> None:
    for kernel, entry in (
        (spec("_scale", FP32, 1.0), "nrt_scale"),
        (spec("_shared", 96), "nrt_shared"),
        (spec("_spilling"), "nrt_spilling"),
    ):
        first = compile_kernel(kernel, SM80, cache=False)
        compile_kernel(spec("_scale", BF16, 1.0), SM80, cache=False)
        again = compile_kernel(kernel, SM80, cache=False)
        assert first.entry == again.entry == entry
        assert first == again


def test_bytes_are_the_same_in_every_process() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "import hashlib\n"
        "from cuda_kernels.tiny_kernels import spec\n"
        "from nrt.cuda_kernels.compiler import compile_kernel, kernel_key\n"
        "from nrt.cuda_kernels.device import ARCHS\n"
        "from nrt.dtypes import FP16\n"
        "wanted = spec('_scale', FP16, 0.5)\n"
        "cubin = compile_kernel(wanted, ARCHS['sm_80'], cache=False)\n"
        "print(kernel_key(wanted, ARCHS['sm_80']), hashlib.sha256(cubin.code).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = compile_kernel(spec("_scale", FP16, 0.5), SM80, cache=False)
    assert done.stdout.split() == [
        kernel_key(spec("_scale", FP16, 0.5), SM80),
        hashlib.sha256(here.code).hexdigest(),
    ]


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (spec("_untypable", "q"), r"kernel _untypable\('q',\) does not compile for sm_80: "),
        (spec("_unlinkable"), r"kernel _unlinkable\(\) does not link for sm_80: .*"),
        (spec("_raising", "why"), r"kernel _raising\('why',\) does not compile for sm_80: 'why'"),
        (spec("_missing", 3), r"kernel _missing\(3,\) does not compile .*no attribute '_missing'"),
        (KernelSpec("no.such.module:_f", (), 32), r"kernel _f\(\) .*No module named 'no'"),
    ],
    ids=lambda value: value.factory.partition(":")[2] if isinstance(value, KernelSpec) else "",
)
def test_errors_name_the_kernel(kernel: KernelSpec, message: str) -> None:
    with pytest.raises(CompileError, match=re.compile(message, re.DOTALL)):
        compile_kernel(kernel, SM80, cache=False)


def test_the_linker_tells_what_it_met() -> None:
    with pytest.raises(CompileError, match=r"Not a name of any known instruction: 'no'") as caught:
        compile_kernel(spec("_unlinkable"), SM80, cache=False)
    assert "\0" not in str(caught.value)


def test_a_failure_leaves_no_cache_entry(cache: Path) -> None:
    with pytest.raises(CompileError):
        compile_kernel(spec("_raising", "x"), SM80)
    assert files(cache) == []


def test_unknown_architectures() -> None:
    assert device_for_arch("sm_90") is ARCHS["sm_90a"]
    with pytest.raises(BuildError, match="'sm_61' is unknown; expected one of sm_75, sm_80, sm_87"):
        device_for_arch("sm_61")
    assert ARCHS["sm_90a"].compile_cc == (9, 0, "a")
    assert ARCHS["sm_87"].compile_cc == (8, 7)


# -- the cache -------------------------------------------------------------------------------------


def test_a_second_request_reads_the_cache(cache: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    kernel = spec("_counting", str(marks))
    first = compile_kernel(kernel, SM80)
    assert compile_kernel(kernel, SM80) == first
    assert len(list(marks.iterdir())) == 1
    assert len(files(cache)) == 1
    compile_kernel(kernel, ARCHS["sm_75"])
    assert len(list(marks.iterdir())) == 2
    compile_kernel(kernel, SM80, cache=False)
    assert len(list(marks.iterdir())) == 3


HEADER = {"entry": "nrt_shared", "registers": 1, "spills": 0, "shared": 0}


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: raw[:40],
        lambda raw: b"\xff\xfe" + raw,
        lambda raw: b"not json\n" + raw.partition(b"\n")[2],
        lambda raw: b"3\n" + raw.partition(b"\n")[2],
        lambda raw: b"{}\n" + raw.partition(b"\n")[2],
        lambda raw: json.dumps({"sha256": hashlib.sha256(b"").hexdigest()}).encode() + b"\n",
        lambda raw: (
            json.dumps({**HEADER, "evil": 1, "sha256": hashlib.sha256(b"x").hexdigest()}).encode()
            + b"\nx"
        ),
    ],
)
def test_a_damaged_file_is_compiled_anew(cache: Path, damage: Any) -> None:
    kernel = spec("_shared", 33)
    first = compile_kernel(kernel, SM80)
    (path,) = files(cache)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert compile_kernel(kernel, SM80) == first
    assert path.read_bytes() == good
    assert files(cache) == [path]


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file in its place")
    with pytest.raises(CompileError, match=r"cubin cache .*: cannot be written .*NRT_CACHE_DIR"):
        compile_kernel(spec("_shared", 34), SM80)


def test_keys_differ_where_binaries_may() -> None:
    base = spec("_scale", FP32, 1.0)
    keys = [
        kernel_key(s, device)
        for s, device in [
            (base, SM80),
            (base, ARCHS["sm_87"]),
            (replace(base, threads=64), SM80),
            (replace(base, min_blocks=2), SM80),
            (spec("_scale", FP16, 1.0), SM80),
            (spec("_scale", FP32, 2.0), SM80),
            (spec("_shared", FP32, 1.0), SM80),
        ]
    ]
    assert len(set(keys)) == len(keys)
    # A device with other numbers of the same architecture runs the same binary.
    assert kernel_key(base, replace(SM80, name="A30", multiprocessors=56)) == keys[0]


def _clear() -> None:
    for function in (compiler._source, compiler._imports, compiler._source_hash):
        function.cache_clear()


@pytest.mark.parametrize(
    ("factory", "changed", "differs"),
    [
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.conv_mma", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.mma_tile", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.ptx", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.codegen", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.ir.pointwise", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.compiler", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.dependent_launch", True),
        ("nrt.cuda_kernels.conv_mma:_kernel", "nrt.cuda_kernels.softmax", False),
    ],
)
def test_a_changed_source_changes_the_keys_that_depend_on_it(
    monkeypatch: pytest.MonkeyPatch, factory: str, changed: str, differs: bool
) -> None:
    kernel = KernelSpec(factory, (), 32)
    before = kernel_key(kernel, SM80)
    plain = compiler._source.__wrapped__

    def edited(module: str) -> str:
        return str(plain(module)) + ("\n# edited" if module == changed else "")

    edited.cache_clear = lambda: None  # type: ignore[attr-defined]
    _clear()
    monkeypatch.setattr(compiler, "_source", edited)
    try:
        assert (kernel_key(kernel, SM80) != before) == differs
    finally:
        monkeypatch.undo()
        _clear()
    assert kernel_key(kernel, SM80) == before


def test_the_toolchain_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"numba-cuda", "llvmlite", "cuda-core"} <= set(toolchain())
    before = kernel_key(spec("_shared", 1), SM80)
    monkeypatch.setattr(compiler, "toolchain", lambda: {**toolchain(), "numba-cuda": "99"})
    assert kernel_key(spec("_shared", 1), SM80) != before


def test_a_cubin_is_a_value() -> None:
    assert Cubin(b"a", "e", 1, 2, 3) == Cubin(b"a", "e", 1, 2, 3)
