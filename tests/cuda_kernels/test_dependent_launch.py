"""Every Hopper kernel waits for its predecessor before it touches memory."""

from __future__ import annotations

import re
import textwrap

import pytest

from nrt.cuda_kernels import compiler
from nrt.cuda_kernels.compiler import compile_kernel
from nrt.cuda_kernels.dependent_launch import with_dependent_launch
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.variant import KernelSpec
from nrt.dtypes import FP16
from nrt.errors import CompileError

from .tiny_kernels import spec

PROLOGUE = ["griddepcontrol.wait;", "griddepcontrol.launch_dependents;"]
DECLARATIONS = (".reg", ".local", ".shared")


def module(body: str, before: str = "") -> str:
    """A PTX module with one entry."""
    head = ".version 9.0\n.target sm_90a\n.address_size 64\n"
    entry = ".visible .entry f(\n\t.param .u64 f_param_0\n)\n.maxntid 32, 1, 1\n"
    return f"{head}{before}\n{entry}{{\n{textwrap.dedent(body)}\n}}\n"


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def instructions(ptx: str) -> list[str]:
    """The entry's lines behind its declarations."""
    body = ptx[re.search(r"\.entry[^{]*\{", ptx).end() :]  # type: ignore[union-attr]
    found = lines(body)
    return [line for line in found if not line.startswith(DECLARATIONS)]


PLAIN = "\t.reg .b64 \t%rd<3>;\n\n\n\tld.param.u64 \t%rd1, [f_param_0];\n\tret;\n"
DEPOT = (
    "\t.local .align 16 .b8 \t__local_depot0[4096];\n\t.reg .b64 \t%SP;\n\t.reg .b64 \t%SPL;\n"
    "\t.shared .align 4 .b8 tile[64];\n\t.reg .pred \t%p<2>;\n\n\tmov.u64 \t%SPL, __local_depot0;\n"
    "\t.reg .b32 later;\n$L__BB0_1:\n\t@%p1 bra \t$L__BB0_1;\n\tret;\n"
)
BARE = "\tret;\n"
BLOCK = "\t.reg .b32 %r<2>;\n\n\t{ .reg .b32 t; mov.u32 t, 1; }\n\tret;\n"


@pytest.mark.parametrize("body", [PLAIN, DEPOT, BARE, BLOCK], ids=["plain", "depot", "bare", "{}"])
def test_the_wait_comes_before_every_instruction(body: str) -> None:
    ptx = module(body)
    found = with_dependent_launch(ptx)
    assert instructions(found) == [*PROLOGUE, *instructions(ptx)]
    # Nothing else has changed, and the declarations at the head are still there.
    rest = [line for line in found.splitlines() if line.strip() not in PROLOGUE]
    assert rest == ptx.splitlines()
    at = lines(found).index(PROLOGUE[0])
    head = lines(body[: re.search(r"^\t(?![.])", body, re.M).start()])  # type: ignore[union-attr]
    assert lines(found)[at - len(head) : at] == head


def test_functions_and_data_before_the_entry_stay_as_they_are() -> None:
    before = (
        ".visible .shared .align 4 .b8 smem[160];\n"
        ".func (.param .b32 r) g(\n\t.param .b32 g_0\n)\n{\n\t.reg .b32 %r<2>;\n\tret;\n}\n"
    )
    ptx = module(PLAIN, before)
    found = with_dependent_launch(ptx)
    assert before in found
    assert instructions(found)[:2] == PROLOGUE
    assert found.count("griddepcontrol.wait;") == 1


def test_every_entry_waits() -> None:
    ptx = module(PLAIN) + module(DEPOT).replace(" f(", " second(")
    assert with_dependent_launch(ptx).count("\tgriddepcontrol.wait;\n") == 2


def test_a_kernel_that_waits_itself_is_left_alone() -> None:
    ptx = module("\t.reg .b32 %r<2>;\n\tmov.u32 %r1, 1;\n\tgriddepcontrol.wait;\n\tret;\n")
    assert with_dependent_launch(ptx) == ptx
    once = with_dependent_launch(module(PLAIN))
    assert with_dependent_launch(once) == once
    # To let the successor start is no wait.
    early = module("\tgriddepcontrol.launch_dependents;\n\tret;\n")
    assert instructions(with_dependent_launch(early))[:2] == PROLOGUE


def test_a_module_without_an_entry() -> None:
    with pytest.raises(
        CompileError, match=r"the PTX has no entry to put griddepcontrol\.wait into"
    ):
        with_dependent_launch(".version 9.0\n.func g()\n{\n\tret;\n}\n")


KERNELS = [spec("_scale", FP16, 2.0), spec("_shared", 96), spec("_dynamic", 40), spec("_spilling")]


@pytest.mark.some(2)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.factory.partition(":")[2])
def test_compiled_kernels_wait_first(kernel: KernelSpec) -> None:
    text, _ = compiler._ptx(kernel, ARCHS["sm_90a"])
    assert instructions(text)[:2] == PROLOGUE
    assert text.count("griddepcontrol") == 2
    cubin = compile_kernel(kernel, ARCHS["sm_90a"], cache=False)
    assert cubin.code.startswith(b"\x7fELF")


def test_older_architectures_know_no_dependent_launch() -> None:
    assert "griddepcontrol" not in compiler._ptx(KERNELS[0], ARCHS["sm_89"])[0]
