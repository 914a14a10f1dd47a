"""Generated device code: element types, epilogue operands, and the store that ends a kernel.

The generated text is Python, so that its indices are checked by running it on lists.
"""

from __future__ import annotations

import linecache
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from numba import cuda
from numba.cuda import types
from sampling import some

from nrt.cuda_kernels import epilogue
from nrt.cuda_kernels.codegen import loader, pointer, program_function, storer
from nrt.cuda_kernels.compiler import Cubin, compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, epilogue_extras, make_store
from nrt.cuda_kernels.variant import KernelSpec
from nrt.dtypes import BF16, BOOL, DTYPES, FP8E4M3, FP16, FP32, FP64, INT8, INT32, UINT8, DType
from nrt.ir import ops as ir
from nrt.ir.pointwise import Builder, Program
from nrt.problem import TensorSpec

from .emulated_numbers import s8x4, u8x4
from .kernel_emulator import KernelEmulator

SM80 = ARCHS["sm_80"]
u32 = types.uint32


# -- classification --------------------------------------------------------------------------------


def spec(shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType = FP32) -> TensorSpec:
    return TensorSpec(shape, dtype, strides)


Y = TensorSpec.dense((2, 8, 3, 5), FP16, (0, 2, 3, 1))


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (spec((), ()), Extra(FP32, "scalar")),
        (spec((1, 1, 1), (7, 7, 7)), Extra(FP32, "scalar")),
        (spec((8, 1, 1), (1, 1, 1)), Extra(FP32, "channel", 1)),
        (spec((1, 8, 1, 1), (99, 3, 5, 5)), Extra(FP32, "channel", 3)),
        (spec((2, 8, 3, 5), Y.strides, FP16), Extra(FP16, "same")),
        (spec((2, 8, 3, 5), (0, 1, 0, 0)), Extra(FP32, "channel", 1)),
        (spec((2, 8, 3, 5), (0, 0, 0, 0)), Extra(FP32, "scalar")),
        (
            TensorSpec.dense((2, 8, 3, 5), FP32),
            Extra(FP32, "general", 15, (2, 3, 5), (120, 5, 1)),
        ),
        (spec((2, 8, 1, 1), (8, 1, 1, 1)), Extra(FP32, "general", 1, (2, 3, 5), (8, 0, 0))),
        (spec((2, 8, 3, 5), (180, 1, 60, 12)), Extra(FP32, "rows", 1, (), (12,))),
        (  # rows of 10 elements start where no vector may
            spec((2, 8, 3, 5), (150, 1, 50, 10)),
            Extra(FP32, "general", 1, (2, 3, 5), (150, 50, 10)),
        ),
        (  # a gap after each line: rows are not evenly spaced
            spec((2, 8, 3, 5), (240, 1, 80, 12)),
            Extra(FP32, "general", 1, (2, 3, 5), (240, 80, 12)),
        ),
        (spec((5,), (1,)), Extra(FP32, "general", 0, (2, 3, 5), (0, 0, 1))),
    ],
)
def test_classes_of_operands(extra: TensorSpec, wanted: Extra) -> None:
    assert epilogue_extras([extra], Y, 1) == (wanted,)


def test_a_second_result_is_placed_like_an_operand_and_comes_last() -> None:
    bias, second = spec((8, 1, 1), (1, 1, 1)), spec((2, 8, 3, 5), (240, 1, 80, 16), FP16)
    assert epilogue_extras([bias], Y, 1, [second]) == (
        Extra(FP32, "channel", 1),
        Extra(FP16, "rows", 1, (), (16,), written=True),
    )


def test_dimensions_of_size_1_in_the_output_do_not_count() -> None:
    y = TensorSpec.dense((1, 8, 1, 1), FP32, (0, 2, 3, 1))
    row_major = TensorSpec.dense((1, 8, 1, 1), FP32)
    assert epilogue_extras([row_major], y, 1) == (Extra(FP32, "same"),)
    one = TensorSpec.dense((4, 1, 3, 3), FP32)
    assert epilogue_extras([spec((1, 1, 1), (1, 1, 1))], one, 1) == (Extra(FP32, "scalar"),)


# -- the text of a store, run as Python ------------------------------------------------------------


class Memory(list[float]):
    """A tensor's memory; a word of 4 bytes holds ``per_word`` elements."""

    per_word = 1

    @classmethod
    def of(cls, values: list[float], dtype: DType) -> Memory:
        memory = cls(values)
        memory.per_word = 4 // dtype.itemsize
        return memory


def _store_text(
    monkeypatch: pytest.MonkeyPatch,
    program: Program | None,
    extras: tuple[Extra, ...],
    dtype: DType,
    width: int,
) -> Any:
    """The epilogue as a Python function on lists."""
    texts: list[str] = []

    def keep(text: str, name: str, namespace: Mapping[str, Any]) -> Any:
        texts.append(text)
        return namespace

    with monkeypatch.context() as patch:
        patch.setattr(epilogue, "device_function", keep)
        make_store(program, extras, dtype, width)

    def words(count: int, address: tuple[Memory, int]) -> tuple[Any, ...]:
        memory, at = address
        each = memory.per_word
        assert at % (each * count) == 0, f"{count} words at element {at} are not aligned"
        found = [memory[at + each * i : at + each * (i + 1)] for i in range(count)]
        return tuple(tuple(word) if each > 1 else word[0] for word in found)

    def put(address: tuple[Memory, int], *values: Any) -> None:
        memory, at = address
        flat = [v for word in values for v in (word if isinstance(word, tuple) else (word,))]
        assert at % len(flat) == 0, f"{len(flat)} elements at element {at} are not aligned"
        memory[at : at + len(flat)] = flat

    scope: dict[str, Any] = {
        "u32": lambda x: int(x) % 2**32,
        "F": float,
        "max_": max,
        "at": lambda memory, i: (memory, i),
        "bits": lambda x: x,
        "int_bits": lambda x: x,
        "signed_byte": lambda word, shift: word[shift // 8],
        "unsigned_byte": lambda word, shift: word[shift // 8],
        "fp8_byte": lambda word, part: word[part],
        "pack_s8": lambda *values: values,
        "pack_u8": lambda *values: values,
        "pack_e4m3": lambda *values: values,
        "as_float": lambda x: x,
        "store": lambda memory, i, v: memory.__setitem__(i, v),
        **{f"{t}_{half}": (lambda w, k=k: w[k]) for t in ("f16", "bf16")
           for k, half in enumerate(("lo", "hi"))},
        **{f"pack_{t}": lambda a, b: (a, b) for t in ("f16", "bf16")},
        **{f"ld{n}": lambda address, n=n: words(n, address) for n in (1, 2, 4)},
        **{f"st{n}": put for n in (1, 2, 4)},
        **{f"load{i}": lambda memory, i: memory[i] for i in range(MAX_EXTRAS)},
        **{f"store{i}": lambda memory, i, v: memory.__setitem__(i, v) for i in range(MAX_EXTRAS)},
    }  # fmt: skip
    note(texts[0])
    exec(texts[0], scope)
    return scope["epilogue"]


@st.composite
def epilogues(
    draw: st.DrawFn,
) -> tuple[TensorSpec, list[TensorSpec], list[TensorSpec], int, int]:
    """An output, operands that broadcast to it, a second output or none, the channel dimension, and
    a store's width.
    """
    width = draw(st.sampled_from([1, 2, 4, 8, 16]))
    rank = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 3)) for _ in range(rank)]
    channel = rank - 1 if rank != 4 or draw(st.booleans()) else 1
    shape[channel] = width * draw(st.integers(1, 3))
    order = [d for d in range(rank) if d != channel]
    order = [*order, channel] if width > 1 else list(draw(st.permutations(range(rank))))
    dtype = draw(st.sampled_from([FP32, FP16, BF16, INT8, UINT8, FP8E4M3, INT32]))

    def strided(dims: tuple[int, ...], memory: list[int], kind: DType) -> TensorSpec:
        strides = [0] * len(dims)
        step = 1
        for dim in reversed(memory):
            strides[dim] = step
            step *= dims[dim]
            # A slice of something wider, by whole vectors.
            step += width * draw(st.integers(0, 1)) * (dim == memory[-1])
        return TensorSpec(dims, kind, tuple(strides))

    y = strided(tuple(shape), order, dtype)
    seconds = []
    if draw(st.booleans()):
        kind = draw(st.sampled_from([FP32, FP16, BF16, INT8, UINT8, FP8E4M3]))
        anywhere = strided(y.shape, list(draw(st.permutations(range(rank)))), kind)
        seconds = [draw(st.sampled_from([TensorSpec(y.shape, kind, y.strides), anywhere]))]
    extras = []
    for _ in range(draw(st.integers(0, MAX_EXTRAS - len(seconds)))):
        kind = draw(st.sampled_from([FP32, FP16, BF16, INT8, UINT8, FP8E4M3]))
        mode = draw(st.integers(0, 3))
        if mode == 0:
            extras.append(TensorSpec(y.shape, kind, y.strides))
            continue
        dims = tuple(d if draw(st.booleans()) else 1 for d in shape)
        if mode == 1:
            dims = tuple(d if i == channel else 1 for i, d in enumerate(shape))
        dims = dims[draw(st.integers(0, rank)) if mode > 1 else 0 :]
        memory = list(draw(st.permutations(range(len(dims)))))
        extras.append(strided(dims, memory, kind))
    return y, extras, seconds, channel, width


@settings(max_examples=300, deadline=None)
@given(epilogues())
def test_stores_read_and_write_where_numpy_does(
    case: tuple[TensorSpec, list[TensorSpec], list[TensorSpec], int, int],
) -> None:
    y, extras, seconds, channel, width = case
    note(f"y {y} {y.strides}; {[(e.shape, e.strides) for e in extras]}; width {width}")
    note(f"second results: {[(e.dtype, e.strides) for e in seconds]}")
    rng = np.random.default_rng(secrets.randbits(32))
    classes = epilogue_extras(extras, y, channel, seconds)
    b = Builder("f" * (1 + len(extras)))
    total = 0
    for register in range(1, 1 + len(extras)):
        total = b("add", total, register)
    active = b("max", total, b.const(-0.5))
    results = [active, total][: 1 + len(seconds)]
    program = b.build(*results) if extras or seconds else None
    with pytest.MonkeyPatch.context() as patch:
        store = _store_text(patch, program, classes, y.dtype, width)
    memories = [Memory.of(rng.standard_normal(e.span).tolist(), e.dtype) for e in extras]
    views = [
        np.lib.stride_tricks.as_strided(np.array(m), e.shape, [8 * s for s in e.strides])
        for m, e in zip(memories, extras, strict=True)
    ]
    accumulator = rng.standard_normal(y.shape)
    outs = [Memory([np.nan] * spec.span) for spec in (y, *seconds)]
    pointers: list[Any] = [*memories, *outs[1:]]
    pointers += [None] * (MAX_EXTRAS - len(pointers))
    rows = [d for d in range(len(y.shape)) if d != channel]
    for m, row in enumerate(np.ndindex(*(y.shape[d] for d in rows))):
        for k in range(0, y.shape[channel], width):
            index = [0] * len(y.shape)
            for d, i in zip(rows, row, strict=True):
                index[d] = i
            index[channel] = k
            o = sum(i * s for i, s in zip(index, y.strides, strict=True))
            values = []
            for j in range(width):
                index[channel] = k + j
                values.append(accumulator[tuple(index)])
            store(*values, m, k, o, outs[0], *pointers)
    wanted = accumulator
    for view in views:
        wanted = wanted + view
    expected = [wanted if program is None else np.maximum(wanted, -0.5), wanted]
    for out, spec, result in zip(outs, (y, *seconds), expected, strict=False):
        steps = [8 * s for s in spec.strides]
        found = np.lib.stride_tricks.as_strided(np.array(out), spec.shape, steps)
        np.testing.assert_allclose(found, result, rtol=1e-12)
        assert np.count_nonzero(~np.isnan(out)) == spec.size, "wrote between the output's elements"


# -- compiling -------------------------------------------------------------------------------------


def _store_kernel(
    program: Program | None, extras: tuple[Extra, ...], dtype: DType, width: int
) -> tuple[Any, Any]:
    """Every thread stores ``width`` neighbours."""
    store = make_store(program, extras, dtype, width)
    accs = ", ".join(f"f32(x[u32(k + u32({j}))])" for j in range(width))
    text = (
        "def kernel(x, y, e0, e1, e2, e3, e4, e5):\n"
        "    m = u32(cuda.blockIdx.x)\n"
        f"    k = u32(u32(cuda.threadIdx.x) * u32({width}))\n"
        f"    o = u32(u32(m * u32({32 * width})) + k)\n"
        f"    store({accs}, m, k, o, y, e0, e1, e2, e3, e4, e5)\n"
    )
    scope: dict[str, Any] = {"cuda": cuda, "u32": u32, "f32": types.float32, "store": store}
    exec(text, scope)
    kinds = [e.dtype for e in extras] + [FP32] * (MAX_EXTRAS - len(extras))
    return scope["kernel"], types.void(pointer(FP32), pointer(dtype), *map(pointer, kinds))


def compiled(factory: str, *params: Any) -> Cubin:
    kernel = KernelSpec(f"{__name__}:{factory}", params, 32)
    return compile_kernel(kernel, SM80, cache=False)


def _sum_program(kinds: str) -> Program:
    b = Builder(f"f{kinds}")
    total = 0
    for register, kind in enumerate(kinds, 1):
        total = b("add", total, register if kind == "f" else b("to_f", register))
    return b.build(b("max", total, b.const(0.0)))


EVERY_MODE = (
    Extra(FP32, "scalar"),
    Extra(BF16, "channel", 1),
    Extra(FP16, "same"),
    Extra(FP32, "general", 2, (3, 5, 7), (70, 0, 2)),
)
PIECE = (Extra(FP16, "rows", 1, (), (48,)), Extra(FP32, "rows", 1, (), (20,)))


@pytest.mark.some(5)
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(d, w) for d in (FP32, FP16, BF16) for w in (1, 2, 4, 8)]
    + [(INT8, w) for w in (1, 8, 16)]
    + [(UINT8, w) for w in (1, 16)]
    + [(FP8E4M3, 1), (FP8E4M3, 8), pytest.param(FP8E4M3, 16, marks=pytest.mark.slow)],
    ids=str,
)
def test_stores_compile(dtype: DType, width: int) -> None:
    assert compiled("_store_kernel", None, (), dtype, width).spills == 0
    program = _sum_program("ffff")
    assert compiled("_store_kernel", program, EVERY_MODE, dtype, width).spills == 0
    assert compiled("_store_kernel", _sum_program("ff"), PIECE, dtype, width).spills == 0


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("dtype", "extra"),
    [
        (INT8, INT8),
        (INT8, FP8E4M3),
        (FP8E4M3, FP8E4M3),
        (UINT8, INT32),
        (INT8, UINT8),
        (INT32, BOOL),
        (FP64, FP64),
        (FP16, INT8),
    ],
    ids=str,
)
def test_stores_of_other_types_compile(dtype: DType, extra: DType) -> None:
    kind = {"float": "f", "int": "i", "bool": "b"}[extra.kind]
    extras = (Extra(extra, "same"), Extra(extra, "channel", 3))
    compiled("_store_kernel", _sum_program(2 * kind), extras, dtype, 4)


def _copy_kernel(dtype: DType) -> tuple[Any, Any]:
    load, store = loader(dtype), storer(dtype)

    def kernel(x, y):
        i = u32(cuda.threadIdx.x)
        store(y, i, load(x, i))

    return kernel, types.void(pointer(dtype), pointer(dtype))


def _int_store_kernel(width: int) -> tuple[Any, Any]:
    """Every thread stores ``width`` neighbouring int32 sums as they are."""
    store = make_store(None, (), INT32, width)
    accs = ", ".join(f"x[u32(k + u32({j}))]" for j in range(width))
    text = (
        "def kernel(x, y, e):\n"
        f"    k = u32(u32(cuda.threadIdx.x) * u32({width}))\n"
        f"    store({accs}, u32(0), k, k, y, e, e, e, e, e, e)\n"
    )
    scope: dict[str, Any] = {"cuda": cuda, "u32": u32, "store": store}
    exec(text, scope)
    return scope["kernel"], types.void(pointer(INT32), pointer(INT32), pointer(FP32))


@pytest.mark.some(1)
@pytest.mark.parametrize("width", [1, 2, 8])
def test_stores_of_int32_sums_compile(width: int) -> None:
    assert compiled("_int_store_kernel", width).spills == 0


@pytest.mark.parametrize(
    ("dtype", "pack", "values", "wanted"),
    [
        (
            INT8,
            s8x4,
            [0.5, 1.5, -0.5, -2.5, 126.5, 127.5, 1e9, -128.5, -129, -1e30, np.nan, 3.49],
            [0, 2, 0, -2, 126, 127, 127, -128, -128, -128, 0, 3],
        ),
        (
            UINT8,
            u8x4,
            [0.5, 1.5, -0.5, -2.5, 126.5, 254.5, 255.5, 1e30, -1e9, np.nan, 3.49, 200.5],
            [0, 2, 0, 0, 126, 254, 255, 255, 0, 0, 3, 200],
        ),
    ],
    ids=["int8", "uint8"],
)
def test_stores_of_bytes_round_and_saturate(
    dtype: DType, pack: Any, values: list[float], wanted: list[int]
) -> None:
    emulator = KernelEmulator()
    memory = np.full(12, 7, dtype.numpy)
    store = emulator._device(epilogue._BYTE_STORERS[dtype].py_func)
    for i, value in enumerate(values):
        store(memory, i, value)
    assert memory.tolist() == wanted
    words = np.array([pack(*values[i : i + 4]) for i in (0, 4, 8)], np.uint32)
    assert words.view(dtype.numpy).tolist() == wanted
    unpack = epilogue.signed_byte if dtype is INT8 else epilogue.unsigned_byte
    byte = emulator._device(unpack.py_func)
    assert [byte(int(words[i // 4]), i % 4 * 8) for i in range(12)] == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loads_and_stores_of_every_type(dtype: DType) -> None:
    assert compiled("_copy_kernel", dtype).spills == 0


def _program_kernel(program: Program, double: bool) -> tuple[Any, Any]:
    function = program_function(program, double)
    kind = FP64 if double else FP32

    def kernel(x, y):
        i = u32(cuda.threadIdx.x)
        y[i] = function(x[i])

    return kernel, types.void(pointer(kind), pointer(kind))


_UNARY = [
    ir.Relu(), ir.Gelu(), ir.Gelu(True), ir.Sigmoid(), ir.Tanh(), ir.Mish(), ir.HardSwish(),
    ir.Elu(0.5), ir.Selu(), ir.Celu(2.0), ir.LeakyRelu(0.1), ir.Clip(-1.0, 6.0), ir.Softplus(),
    ir.Softsign(), ir.Erf(), ir.Exp(), ir.Log(), ir.Sqrt(), ir.Reciprocal(), ir.Neg(), ir.Abs(),
    ir.Sign(), ir.Floor(), ir.Ceil(), ir.Round(), ir.Sin(), ir.Cos(), ir.ThresholdedRelu(1.0),
    ir.Cast(FP16), ir.HardSigmoid(),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
def test_activations_alone_compile(double: bool, rng: np.random.Generator) -> None:
    for op in some(_UNARY, 5, rng):
        compiled("_program_kernel", op.program(("f",)), double)


def test_activations_together_compile() -> None:
    """One program of them all."""
    b = Builder("f")
    total = 0
    for op in _UNARY:
        total = b("add", total, b.inline(op.program(("f",)), [0])[0])
    compiled("_program_kernel", b.build(total), False)
    compiled("_program_kernel", b.build(total), True)


def test_text_stays_for_tracebacks() -> None:
    program_function(_sum_program("ff"))
    names = [n for n in linecache.cache if n.startswith("<nrt program ")]
    assert any("def program(x0, x1, x2):\n" in linecache.getlines(n) for n in names)
