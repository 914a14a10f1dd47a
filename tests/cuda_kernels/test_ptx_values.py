"""What moves of memory and matrix loads bring: every word in its place, whatever the cache hint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import kernel_function
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Variant
from nrt.dtypes import UINT32
from nrt.ir.ops import Identity
from nrt.problem import Problem, Refusal

from .kernel_emulator import KernelEmulator
from .memory_bound import rows

LOADS = {
    "ld_global_nc_v4": 4, "ld_global_nc_v2": 2, "ld_global_nc_u32": 1, "ld_global_v4": 4,
    "ld_global_nc_no_allocate_v4": 4, "ld_global_cs_nc_v4": 4, "ld_global_cs_nc_v2": 2,
    "ld_global_cs_nc_u32": 1,
}  # fmt: skip
STORES = {
    "st_global_v4": 4, "st_global_v2": 2, "st_global_u32": 1, "st_global_cs_v4": 4,
    "st_global_cs_v2": 2, "st_global_cs_u32": 1,
}  # fmt: skip
"""32-bit words that each moves."""

MATRICES = [(count, trans) for count in (1, 2, 4) for trans in (False, True)]
"""8x8 matrices of an ``ldmatrix``, and whether it transposes them."""

THREADS = 32


def _kernel(lines: Sequence[str]) -> tuple[Any, Any]:
    """``lines`` for each thread ``t``, from ``x`` to ``y``."""
    text = "def kernel(x, y):\n    t = u32(cuda.threadIdx.x)\n"
    text += "".join(f"    {line}\n" for line in lines)
    names = {n: getattr(ptx, n) for n in (*LOADS, *STORES, "at", "shared_address")}
    function = kernel_function(text, names | {"cuda": cuda, "ptx": ptx, "u32": types.uint32})
    return function, types.void(pointer(UINT32), pointer(UINT32))


def _places(words: int) -> list[str]:
    return [f"u32(u32(t * u32({words})) + u32({j}))" for j in range(words)]


def _load(name: str) -> tuple[Any, Any]:
    """A load of each thread's words; they are stored one by one."""
    places = _places(LOADS[name])
    values = [f"v{j}" for j in range(len(places))]
    stores = [f"y[{place}] = {value}" for place, value in zip(places, values, strict=True)]
    return _kernel([f"{', '.join(values)} = {name}(at(x, {places[0]}))", *stores])


def _store(name: str) -> tuple[Any, Any]:
    """A store of each thread's words, which are loaded one by one."""
    places = _places(STORES[name])
    return _kernel([f"{name}(at(y, {places[0]}), {', '.join(f'x[{p}]' for p in places)})"])


def _matrices(count: int, trans: bool) -> tuple[Any, Any]:
    """An ``ldmatrix`` from the 32 rows of x; lane l gives the address of row ``5 l + 3``."""
    name = f"ptx.ldmatrix_x{count}{'_trans' * trans}"
    values = [f"v{j}" for j in range(count)]
    return _kernel([
        "rows = cuda.shared.array(128, u32, alignment=16)",
        "for j in range(4):",
        "    rows[u32(u32(t * u32(4)) + u32(j))] = x[u32(u32(t * u32(4)) + u32(j))]",
        "cuda.syncthreads()",
        "row = u32(u32(u32(t * u32(5)) + u32(3)) % u32(32))",
        "address = u32(shared_address(rows) + u32(row * u32(16)))",
        f"{', '.join(values)} = {name}(address)",
        *(f"y[{p}] = {v}" for p, v in zip(_places(count), values, strict=True)),
    ])  # fmt: skip


class Moves(Variant):
    """One warp; the configuration is a factory of this module and its arguments."""

    name = "moves"
    ops = (Identity,)

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        return ()

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        factory, *params = config
        spec = KernelSpec(f"{__name__}:{factory}", tuple(params), THREADS)
        return Emission((Launch(spec, (1, 1, 1), (THREADS, 1, 1), (In(0), Out())),))


def fresh(words: int) -> np.ndarray:
    return np.random.default_rng().integers(0, 2**32, words, np.uint32)


def moved(runner: Any, config: tuple[Any, ...], x: np.ndarray, words: int) -> np.ndarray:
    """What ``runner``, a GPU's or the emulator, writes for each thread."""
    output = rows(THREADS * words, dtype=UINT32)
    problem = Problem(Identity(), (rows(x.size, dtype=UINT32),), (output,), (False,))
    (out,) = runner.run(Moves(), problem, config, [x])
    return np.asarray(out)


def assert_moves(runner: Any, factory: str, name: str, words: int) -> None:
    x = fresh(THREADS * words)
    np.testing.assert_array_equal(moved(runner, (factory, name), x, words), x)


def assert_matrices(runner: Any, count: int, trans: bool) -> None:
    x = fresh(128)
    halves = x.view(np.uint16).reshape(32, 8)
    order = (5 * np.arange(32) + 3) % 32
    found = moved(runner, ("_matrices", count, trans), x, count)
    halves_of = found.view(np.uint16).reshape(32, count, 2)
    for lane in range(32):
        for matrix in range(count):
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                if trans:
                    row, column = column, row
                wanted = halves[order[8 * matrix + row], column]
                assert halves_of[lane, matrix, half] == wanted, (lane, matrix, half)


@pytest.mark.parametrize("name", LOADS)
def test_loads(name: str) -> None:
    assert_moves(KernelEmulator(), "_load", name, LOADS[name])


@pytest.mark.parametrize("name", STORES)
def test_stores(name: str) -> None:
    assert_moves(KernelEmulator(), "_store", name, STORES[name])


@pytest.mark.parametrize(("count", "trans"), MATRICES)
def test_matrices(count: int, trans: bool) -> None:
    assert_matrices(KernelEmulator(), count, trans)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOADS)
def test_loads_on_the_gpu(cuda_runner: Any, name: str) -> None:
    assert_moves(cuda_runner, "_load", name, LOADS[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", STORES)
def test_stores_on_the_gpu(cuda_runner: Any, name: str) -> None:
    assert_moves(cuda_runner, "_store", name, STORES[name])


@pytest.mark.gpu
@pytest.mark.parametrize(("count", "trans"), MATRICES)
def test_matrices_on_the_gpu(cuda_runner: Any, count: int, trans: bool) -> None:
    assert_matrices(cuda_runner, count, trans)
