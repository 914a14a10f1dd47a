"""Runs CUDA kernels in plain Python, thread by thread, so that indexing is tested without a GPU.

`KernelEmulator.run` has the signature of the GPU's runner. Each thread of a block is a generator
that yields at barriers and shuffles; between two barriers the threads run in a random order, so
that a missing barrier shows; asynchronous copies arrive when their thread waits for them. Every
access is checked for bounds and alignment, shared and output memory start poisoned, and bytes
between an output's elements must survive. Matrix instructions are exchanges within a warp.
Arithmetic is float64: rounding, speed and all that concerns instructions is the GPU tests'
business. Slow: keep problems to thousands of multiply-adds.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import math
import random
import textwrap
import types as pytypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numba.core.extending import _Intrinsic
from numba.core.types import Boolean, Float, Integer
from numba.cuda.dispatcher import CUDADispatcher

from nrt.cuda_kernels import codegen, fp8, ptx, ptx_hopper
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.variant import Emission, In, Null, Out, Scalar, Variant, Work
from nrt.problem import Problem

from .emulated_cuda import Cuda, Dim, Shared
from .emulated_memory import GUARD, Address, Pointer, flat, gather, scatter, stores
from .emulated_mma import ldmatrix, mma, stmatrix, warp_mma
from .emulated_numbers import (
    conversion,
    e4m3_bits,
    e4m3_part,
    from_bytes,
)

__all__ = ["Box", "KernelEmulator"]


@dataclass
class Box:
    """A box that leaves shared memory through the copy engine.

    Attributes:
        of: the address of its tensor map.
        address: where it begins.
        x, y: its place in the tensor.
        memory: the shared memory as the engine read it.
    """

    of: Address
    address: int
    x: int
    y: int
    memory: np.ndarray | None = None


_MMA = {id(getattr(ptx, f"mma_{kind}")): kind for kind in ("f16", "bf16", "s8", "u8")}
"""The kind of each matrix instruction."""


_FP8 = {
    id(fp8.f32_from_e4m3): e4m3_part,
    id(fp8.e4m3_from_f32): e4m3_bits,
    id(fp8.e4m3x4_from_f32): lambda *v: sum(e4m3_bits(x) << 8 * k for k, x in enumerate(v)),
}
"""Conversions of fp8."""


_LDMATRIX = {
    f"ldmatrix_x{count}{'_trans' * trans}": (count, trans)
    for count in (1, 2, 4)
    for trans in (False, True)
}
"""How many matrices each form loads, and whether it transposes them."""

_BLOCKS = ("fragments_a", "fragments_b", "products")
"""What kernels call the warp-wide intrinsics of `nrt.cuda_kernels.mma_block`."""


class _Barriers(ast.NodeTransformer):
    """Barriers, shuffles and matrix instructions become yields to the block's scheduler.

    A kernel calls the matrix instruction by the name ``mma``.
    """

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            if function.attr in ("syncthreads", "syncwarp"):
                return ast.Yield(ast.Tuple([ast.Constant("barrier")], ast.Load()))
            if function.attr.startswith("shfl_"):
                parts: list[ast.expr] = [ast.Constant(function.attr), *node.args[1:]]
                return ast.Yield(ast.Tuple(parts, ast.Load()))
            if function.attr in _LDMATRIX or function.attr == "stmatrix_x4":
                return ast.Yield(ast.Tuple([ast.Constant(function.attr), *node.args], ast.Load()))
        if isinstance(function, ast.Name) and function.id == "mma":
            return ast.Yield(ast.Tuple([ast.Constant("mma"), function, *node.args], ast.Load()))
        if isinstance(function, ast.Name) and function.id in _BLOCKS:
            return ast.Yield(ast.Tuple([ast.Constant("block"), function, *node.args], ast.Load()))
        return node


class KernelEmulator:
    """Runs a variant's emission on NumPy memory.

    Args:
        device: what the variant is told to build for.
        seed: of the order in which threads run.
    """

    def __init__(self, device: DeviceSpec = ARCHS["sm_80"], seed: int = 0) -> None:
        self.device = device
        self.random = random.Random(seed)
        self.cuda = Cuda()
        table = self.cuda.intrinsics()
        self.ptx = pytypes.SimpleNamespace(**table)
        self.by_id = {id(getattr(ptx, name)): f for name, f in table.items()}
        self.by_id |= _MMA | _FP8
        self.by_id |= {id(codegen._min): _minimum, id(codegen._max): _maximum}
        self.by_id |= {
            id(codegen.NAN_EXTREMA["min_"]): _minimum, id(codegen.NAN_EXTREMA["max_"]): _maximum
        }  # fmt: skip
        self.stores: list[Box] = []
        hopper: dict[str, Callable[..., Any]] = {
            "fence_async_shared": lambda: None,
            "tma_store_2d": lambda *box: self.stores.append(Box(*box)),
            "bulk_commit": lambda: None,
            "bulk_wait_read": self._read_boxes,
            "f32x4_from_e4m3x4": from_bytes(ml_dtypes.float8_e4m3fn),
        }
        self.hopper = pytypes.SimpleNamespace(**hopper)
        self.by_id |= {id(getattr(ptx_hopper, name)): f for name, f in hopper.items()}
        self.functions: dict[int, Any] = {}

    def run(
        self, variant: Variant, problem: Problem, config: Any, inputs: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Outputs, logical and row-major, of ``variant`` for logical row-major ``inputs``."""
        emission: Emission = variant.emit(problem, config, self.device)
        memory_in = []
        for slot, (spec, array) in enumerate(zip(problem.inputs, inputs, strict=True)):
            if problem.constants[slot]:
                memory_in.append(flat(variant.pack(problem, config, slot, array)))
            else:
                memory_in.append(scatter(spec, array))
        memory_out = [
            np.full((t.span + GUARD) * t.dtype.itemsize, 0xFF, np.uint8) for t in problem.outputs
        ]
        work = np.full(emission.workspace, 0xFF, np.uint8)
        for launch in emission.launches:
            factory = launch.kernel.factory.partition(":")
            function, signature = getattr(importlib.import_module(factory[0]), factory[2])(
                *launch.kernel.params
            )
            if len(launch.args) != len(signature.args):
                raise TypeError(f"{launch.kernel}: {len(launch.args)} arguments")
            values = []
            for arg, kind in zip(launch.args, signature.args, strict=True):
                if isinstance(arg, Scalar):
                    values.append(conversion(kind)(arg.value))
                    continue
                if isinstance(arg, Null):
                    values.append(None)
                    continue
                base = {In: memory_in, Out: memory_out}.get(type(arg))
                raw = work if isinstance(arg, Work) or base is None else base[arg.slot]
                raw = raw.view(np.uint8)[arg.offset :]
                dtype = np.dtype(kind.dtype.name)
                raw = raw[: len(raw) // dtype.itemsize * dtype.itemsize]
                values.append(Pointer(raw.view(dtype), f"{launch.kernel.factory} {arg}"))
            self._launch(self._kernel(function), launch, values)
        return [gather(spec, raw) for spec, raw in zip(problem.outputs, memory_out, strict=True)]

    def _launch(self, kernel: Callable[..., Any], launch: Any, values: list[Any]) -> None:
        threads = math.prod(launch.block)
        if threads != launch.kernel.threads:
            raise ValueError(f"block {launch.block} has {threads}, not {launch.kernel.threads}")
        cuda = self.cuda
        cuda.blockDim, cuda.gridDim = Dim(*launch.block), Dim(*launch.grid)
        indices = [
            Dim(x, y, z)
            for z in range(launch.block[2])
            for y in range(launch.block[1])
            for x in range(launch.block[0])
        ]
        for block in np.ndindex(*launch.grid):
            cuda.blockIdx = Dim(*block)
            cuda.block = Shared(launch.shared)
            self._turns({t: kernel(*values) for t in range(threads)}, indices)

    def warp(
        self,
        function: Callable[..., Any],
        arguments: Callable[[int], Sequence[Any]],
        memory: np.ndarray,
    ) -> np.ndarray:
        """Run a device function in the lanes of a warp.

        Args:
            function: the device function's Python.
            arguments: of each lane.
            memory: bytes of the shared memory, from address 0 on.

        Returns:
            The shared memory after. Boxes that the function stores through the copy engine are in
            ``stores``.
        """
        self.cuda.block = Shared(len(memory))
        self.cuda.block.memory.data[:] = memory
        self.stores.clear()
        kernel = self._kernel(function)
        lanes = [Dim(t, 0, 0) for t in range(32)]
        self._turns({t: kernel(*arguments(t)) for t in range(32)}, lanes)
        self._read_boxes()
        return self.cuda.block.memory.data

    def _read_boxes(self) -> None:
        """The copy engine reads as late as it may: where somebody waits for it."""
        for box in self.stores:
            if box.memory is None:
                box.memory = self.cuda.block.memory.data.copy()

    def _turns(self, live: dict[int, Any], indices: Sequence[Dim]) -> None:
        """Run a block's threads from barrier to barrier until all have ended."""
        cuda = self.cuda
        declared = dict.fromkeys(live, 0)
        reply: dict[int, Any] = dict.fromkeys(live)
        while live:
            order = list(live)
            self.random.shuffle(order)
            asked: dict[int, Any] = {}
            for t in order:
                cuda.thread, cuda.threadIdx, cuda.declared = t, indices[t], declared[t]
                try:
                    asked[t] = live[t].send(reply[t])
                except StopIteration:
                    del live[t]
                declared[t] = cuda.declared
            reply = self._exchange(asked)

    def _exchange(self, asked: dict[int, Any]) -> dict[int, Any]:
        """What each thread receives: of a shuffle or a matrix instruction; else nothing."""
        reply: dict[int, Any] = {}
        names = {request[0] for request in asked.values()}
        if len(names) > 1:
            raise RuntimeError(f"threads wait at different barriers: {set(asked.values())}")
        if names == {"block"}:
            return self._warp_blocks(asked)
        if names and names <= {*_LDMATRIX, "stmatrix_x4", "mma"}:
            return self._matrices(asked)
        for t, (name, *parts) in asked.items():
            if name == "barrier":
                reply[t] = None
                continue
            lane, warp = t % 32, t - t % 32
            other = {
                "shfl_xor_sync": lambda s, lane=lane: lane ^ s,
                "shfl_down_sync": lambda s, lane=lane: lane + s if lane + s < 32 else lane,
                "shfl_sync": lambda s: s % 32,
            }[name](parts[1])
            reply[t] = asked[warp + other][1]
        return reply

    def _matrices(self, asked: dict[int, Any]) -> dict[int, Any]:
        """What each thread receives of a matrix instruction, which whole warps execute."""
        reply: dict[int, Any] = {}
        for first in sorted({t - t % 32 for t in asked}):
            name, *_ = asked[first]
            requests = [asked[first + lane] for lane in range(32)]
            if name == "stmatrix_x4":
                for place, row in zip([r[1] for r in requests], stmatrix(requests), strict=True):
                    self.cuda.block.memory.window(place, 16)[:] = row
                reply |= {first + lane: None for lane in range(32)}
                continue
            if name == "mma":
                found: Sequence[Any] = mma(requests[0][1], [r[2:] for r in requests])
            else:
                count, trans = _LDMATRIX[name]
                found = ldmatrix(self._rows([r[1] for r in requests[: 8 * count]]), trans)
                if count == 1:
                    found = [word for (word,) in found]
            reply |= {first + lane: value for lane, value in enumerate(found)}
        return reply

    def _rows(self, addresses: Sequence[int]) -> list[np.ndarray]:
        """The 16 bytes at each of these shared addresses."""
        memory = self.cuda.block.memory
        return [memory.window(a, 16).copy() for a in addresses]

    def _warp_blocks(self, asked: dict[int, Any]) -> dict[int, Any]:
        """Execute an intrinsic of `mma_block` on the local arrays of whole warps."""
        for first in sorted({t - t % 32 for t in asked}):
            lanes = [asked[first + lane][1:] for lane in range(32)]
            form = lanes[0][0].form
            if form[0] == "fragments":
                for i in range(form[1]):
                    found = ldmatrix(self._rows([lane[2] + i * form[2] for lane in lanes]))
                    for lane, words in zip(lanes, found, strict=True):
                        lane[1][4 * i : 4 * i + 4] = words
            else:
                warp_mma(*form[1:], [lane[1:] for lane in lanes])
        return dict.fromkeys(asked)

    def _mma_block(self, form: tuple[Any, ...]) -> Callable[..., None]:
        """The intrinsics of `mma_block` that a thread executes by itself."""
        if form[0] == "copies":
            _, count, to_step, from_step, from_first = form

            def copies(target: int, source: Address, size: int) -> None:
                for i in range(count):
                    self.cuda.cp_async(
                        target + i * to_step, source + (from_first + i * from_step), size
                    )

            return copies
        if form[0] == "change_words":
            _, word, blocks, count, per_word = form
            change = self._device(word)

            def change_words(words: list[Any], numbers: list[Any]) -> None:
                for i in range(4 * blocks):
                    half = i % 4 // 2
                    own = [
                        numbers[(2 * operand + half) * per_word + element]
                        for operand in range(count)
                        for element in range(per_word)
                    ]
                    words[i] = change(words[i], *own)

            return change_words
        _, mi_count, ni_count, pitch = form
        put = {kind: self.cuda.in_shared(stores(kind)) for kind in (np.int32, np.float32)}

        def put_rows(acc: list[Any], address: int) -> None:
            for ni in range(ni_count):
                for part in (0, 1):
                    cell = address + ni * 32 + part * 8 * pitch * 4
                    pair = acc[4 * ni + 2 * part :][:2]
                    kind = np.int32 if isinstance(pair[0], int) else np.float32
                    put[kind](cell, *pair)
            acc[: (mi_count - 1) * ni_count * 4] = acc[ni_count * 4 :]

        return put_rows

    def _kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel as a generator function over emulated names."""
        closure = inspect.getclosurevars(function)
        names = {**function.__globals__, **closure.nonlocals}
        scope = {name: self._value(value) for name, value in names.items()}
        exec(_generator_code(function.__code__, function.__code__.co_filename), scope)
        return scope[function.__name__]

    def _value(self, value: Any) -> Any:
        """What stands for ``value`` inside emulated code."""
        if value is ptx:
            return self.ptx
        if value is ptx_hopper:
            return self.hopper
        if isinstance(value, pytypes.ModuleType) and value.__name__ == "numba.cuda":
            return self.cuda
        if isinstance(value, Integer | Float | Boolean):
            return _kind(value)
        if isinstance(value, CUDADispatcher):
            if id(value) not in self.functions:
                self.functions[id(value)] = (value, self._device(value.py_func))
            return self.functions[id(value)][1]
        if id(value) in self.by_id:
            return self.by_id[id(value)]
        if hasattr(value, "form"):
            if value.form[0] in ("fragments", "warp_mma"):
                return value
            return self._mma_block(value.form)
        if isinstance(value, _Intrinsic):
            raise NotImplementedError(f"the emulator has no {value._name}")
        return value

    def _device(self, function: pytypes.FunctionType) -> Callable[..., Any]:
        """A device function over emulated names."""
        scope: dict[str, Any] = {}
        cells = tuple(
            pytypes.CellType(self._value(cell.cell_contents)) for cell in function.__closure__ or ()
        )
        built = pytypes.FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, cells or None
        )
        used = _names(function.__code__)
        for name, value in function.__globals__.items():
            if name in used or name == "__builtins__":
                scope[name] = built if value is function else self._value(value)
        return built


def _minimum(a: Any, b: Any) -> Any:
    return b if (b < a or b != b) else a  # noqa: PLR0124


def _maximum(a: Any, b: Any) -> Any:
    return b if (b > a or b != b) else a  # noqa: PLR0124


@functools.cache
def _generator_code(code: pytypes.CodeType, filename: str) -> pytypes.CodeType:
    """Code that defines the kernel as a generator; codes of two files may be equal otherwise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(code)), filename)
    tree = ast.fix_missing_locations(_Barriers().visit(tree))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    never = ast.parse("if False:\n    yield").body  # a generator even without barriers
    definition.body = [*never, *definition.body]
    ast.fix_missing_locations(tree)
    return compile(tree, f"<emulated {definition.name}>", "exec")


def _names(code: Any) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, pytypes.CodeType):
            found |= _names(constant)
    return found


def _kind(kind: Any) -> Callable[[Any], Any]:
    """A Numba number type inside emulated code: converts when called, and is an array's type.

    Kernels convert most of their numbers: one call of a function, not of an object and then one.
    """
    convert = conversion(kind)
    if isinstance(convert, type):
        of_python = convert

        def convert(value: Any) -> Any:
            return of_python(value)

    convert.name = kind.name  # type: ignore[attr-defined]
    return convert
