"""Convolutions that compute on their input as they load it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.conv_direct import ConvDirect
from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.conv_simt import ConvSimt
from nrt.cuda_kernels.conv_wgmma import ConvWgmma
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.mma_kernel import Tile
from nrt.cuda_kernels.mma_tile import PROLOGUE_TILES, SYNCHRONOUS
from nrt.cuda_kernels.prologue import channel_table, conv_prologue
from nrt.cuda_kernels.registry import variants_for
from nrt.cuda_kernels.simt_tile import Tile as SimtTile
from nrt.cuda_kernels.wgmma_prologue import lane_rows
from nrt.dtypes import BF16, FP16, FP32, FP64, DType
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import NHWC
from nrt.problem import Problem, TensorSpec

from .emulated_mma import ldmatrix
from .harness import assert_right, compiled, problem
from .kernel_emulator import KernelEmulator
from .plain_cases import assert_emulated
from .test_mma import synchronous
from .test_wgmma import forms

LIMIT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "fp64": 1e-12}
TF32 = {"fp32": 1e-3}


def _program(kinds: str, *steps: tuple[Any, ...]) -> Program:
    """Steps of (opcode, arguments); a float among these is a constant."""
    b = Builder(kinds)
    last = 0
    for opcode, *args in steps:
        last = b(opcode, *(b.const(a) if isinstance(a, float) else a for a in args))
    return b.build(last)


NORM = _program("fff", ("mul", 0, 1), ("add", 3, 2), ("max", 4, 0.0))
"""relu(a · x + b), as a batch normalization before a convolution leaves it."""
GATE = _program("ff", ("mul", 0, 1), ("sigmoid", 2), ("mul", 0, 3))
PLAIN = _program("f", ("max", 0, 0.0))
LOG = _program("ff", ("abs", 0), ("abs", 1), ("add", 2, 3), ("log", 4))
"""log(|x| + |a|): of zeros it is infinite."""
BIAS = _program("ff", ("add", 0, 1), ("max", 2, 0.0))
RESIDUAL = _program("fff", ("add", 0, 1), ("add", 3, 2))


def conv(
    shape: tuple[int, int, int, int],
    k: int,
    prologue: Program = NORM,
    dtype: DType = FP16,
    *,
    epilogue: Program | None = BIAS,
    filter_size: tuple[int, int] = (1, 1),
    front: int = 0,
    order: tuple[int, ...] | None = NHWC,
    constants: bool = True,
    **attributes: Any,
) -> Problem:
    """A convolution of ``shape`` to ``k`` channels; ``front``: x lies in so many more channels."""
    n, c, _, _ = shape
    op = Conv(prologue=prologue, epilogue=epilogue, **attributes)
    shapes = [shape, (k, c // op.groups, *filter_size)]
    shapes += [(c, 1, 1)] * (len(prologue.inputs) - 1)
    first = len(shapes)
    if epilogue is not None:
        shapes.append((k, 1, 1))
    if epilogue is RESIDUAL:
        own = Conv(**attributes).infer(*(TensorSpec.dense(s, dtype).type for s in shapes[:2]))
        shapes.append(own[0].shape)
    dtypes = dict.fromkeys(range(2, first + 1), FP32)
    known = [1, *range(2, first + 1)] if constants else [1]
    made = problem(
        op, shapes, dtype, order=order, dtypes=dtypes,
        constants=[slot for slot in known if slot < len(shapes)],
    )  # fmt: skip
    if front:
        wide = TensorSpec.dense((n, c + front, *shape[2:]), dtype, order)
        x = TensorSpec(shape, dtype, wide.strides)
        made = Problem(op, (x, *made.inputs[1:]), made.outputs, made.constants)
    return made


SMALL = Tile(32, 32, 64, 2, 1, 3)
CASES = [
    conv((1, 40, 5, 7), 24),
    conv((2, 136, 7, 7), 40, epilogue=RESIDUAL, front=24),
    conv((1, 72, 6, 5), 16, strides=(2, 2)),
    conv((1, 64, 3, 5), 13, GATE, BF16, epilogue=None),
    conv((1, 24, 4, 4), 32, PLAIN),
    conv((1, 104, 4, 5), 32, LOG),
]
EMULATED: list[tuple[Any, Problem, Any]] = [
    (ConvMma(), CASES[0], SMALL),
    (ConvMma(), CASES[1], SMALL._replace(split=2)),
    (ConvMma(), CASES[2], Tile(64, 32, 32, 4, 1, 4)),
    (ConvMma(), CASES[3], Tile(64, 64, 64, 2, 1, 4)),
    (ConvMma(), CASES[4], SMALL),
    (ConvMma(), CASES[5], Tile(32, 64, 64, 2, 1, 4, 2)),
    (ConvMma(), conv((1, 44, 5, 5), 24, dtype=FP32, tf32=True), Tile(32, 32, 32, 2, 1, 3)),
    (ConvDirect(), conv((1, 6, 5, 4), 5, filter_size=(3, 3), pads=(1, 1, 1, 1)), ()),
    (ConvDirect(), conv((1, 6, 5, 4), 4, GATE, groups=2, order=None, constants=False), ()),
    (ConvSimt(), conv((1, 20, 5, 7), 24, dtype=FP32), SimtTile(32, 32, 16, 4, 4)),
    (ConvSimt(), conv((1, 40, 5, 5), 9, LOG, FP32, strides=(2, 2)), SimtTile(32, 32, 16, 4, 4, 2)),
    (ConvSimt(), conv((2, 36, 5, 5), 24, epilogue=RESIDUAL), SimtTile(32, 32, 16, 4, 4, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "task", "config"), EMULATED, ids=str)
def test_emulated(variant: Any, task: Problem, config: Any) -> None:
    assert_emulated(variant, task, LIMIT | (TF32 if task.op == EMULATED[6][1].op else {}), config)


def test_without_cp_async_emulated() -> None:
    """Before sm_80 there are no pairs of halves either."""
    assert_emulated(synchronous(ConvMma), CASES[0], LIMIT, SYNCHRONOUS[-1])


@pytest.mark.slow
@pytest.mark.parametrize("tile", PROLOGUE_TILES[::3], ids=str)
def test_tiles_emulated(tile: Tile) -> None:
    assert_emulated(ConvMma(), conv((1, tile.bk + 8, 7, 5), tile.bn + 8), LIMIT, tile)


def test_the_order_of_pointers() -> None:
    """The epilogue's operands first, the prologue's after them."""
    (launch,) = ConvDirect().emit(CASES[1], (), ARCHS["sm_80"]).launches
    assert [getattr(a, "slot", None) for a in launch.args[:7]] == [0, 1, 0, 4, 5, 2, 3]
    main, reduce = ConvMma().emit(CASES[1], SMALL._replace(split=2), ARCHS["sm_80"]).launches
    assert [getattr(a, "slot", None) for a in main.args[3:7]] == [2, 3, None, None]
    assert [getattr(a, "slot", None) for a in reduce.args[2:6]] == [4, 5, 2, 3]


def test_tables_are_padded_with_what_keeps_zeros_finite() -> None:
    log = CASES[5]
    prologue = conv_prologue(log)
    assert prologue is not None
    assert prologue.padding == 1.0
    numbers = np.arange(104, dtype=np.float32).reshape(104, 1, 1)
    table = channel_table(log, numbers, 128)
    assert table.tolist() == [*range(104), *[1.0] * 24]
    one = channel_table(conv((1, 8, 2, 2), 8, GATE), np.float32(7).reshape(()), 64)
    assert one.tolist() == [7.0] * 8 + [0.0] * 56


LOG_ALONE = _program("f", ("log", 0))


@pytest.mark.parametrize(
    ("variant", "task", "reason"),
    [
        (
            ConvMma(),
            conv((1, 16, 5, 5), 16, filter_size=(3, 3), pads=(1, 1, 1, 1)),
            "the prologue of a convolution with padding or groups, expected neither",
        ),
        (ConvWgmma(), conv((1, 16, 5, 5), 16, pads=(0, 0, 0, 1)), "with padding or groups"),
        (ConvSimt(), conv((1, 16, 5, 5), 16, groups=2), "with padding or groups"),
        (ConvMma(), conv((1, 16, 5, 5), 16, constants=False), "an operand of the prologue is comp"),
        (ConvMma(), conv((1, 16, 5, 5), 16, LOG_ALONE), "makes no finite number of zeros"),
        (ConvMma(), conv((1, 20, 5, 5), 16), "are not multiples of 8 with channels innermost"),
        (
            ConvMma(),
            conv((1, 12288, 2, 2), 16, _program("fffff", *[("add", i, i + 1) for i in range(4)]),
                 epilogue=None),
            "tables of 12288 channels do not fit sm_80's shared memory",
        ),
        (
            ConvSimt(),
            conv((1, 18, 5, 5), 16),
            "a prologue on 18 input channels with strides",
        ),
        (ConvWgmma(), conv((1, 16, 5, 5), 16, LOG_ALONE), "makes no finite number of zeros"),
        (
            ConvWgmma(),
            conv((1, 16, 5, 5), 16, dtype=FP32, tf32=True),
            "a prologue on fp32, expected fp16 or bf16",
        ),
        (
            ConvWgmma(),
            conv((1, 60000, 1, 1), 16, GATE),
            "tables of 60000 channels do not fit sm_90a's shared memory",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(variant: Any, task: Problem, reason: str) -> None:
    device = ARCHS["sm_90a" if isinstance(variant, ConvWgmma) else "sm_80"]
    refusal = variant.supports(task, device)
    assert refusal is not None
    assert reason in refusal.reason


def test_other_kernels_refuse_a_prologue() -> None:
    task = conv((1, 16, 9, 9), 16)
    answers = {v.name: r for v, r in variants_for(task, ARCHS["sm_90a"])}
    taken = {name for name, refusal in answers.items() if refusal is None}
    assert taken == {"conv_direct", "conv_simt", "conv_mma", "conv_wgmma"}
    for name, refusal in answers.items():
        if name not in taken:
            assert refusal is not None
            assert refusal.reason == "the input has a prologue, this kernel multiplies it as it is"


def test_hopper_lanes_load_their_rows_and_numbers() -> None:
    """From a buffer as the copy engine swizzles it: 16-byte pieces exchanged by the row."""
    rng = np.random.default_rng()
    block = rng.integers(0, 1 << 16, (64, 64)).astype(np.uint16)
    pieces = block.reshape(64, 8, 8)
    swizzled = np.empty_like(pieces)
    for row in range(64):
        for piece in range(8):
            swizzled[row, piece ^ (row & 7)] = pieces[row, piece]
    memory = swizzled.reshape(-1).view(np.uint8)
    offset = KernelEmulator()._device(lane_rows.py_func)
    for warp, step in itertools.product(range(4), range(4)):
        addresses = [offset(np.uint32(warp + 4), np.uint32(lane)) ^ 32 * step for lane in range(32)]
        words = ldmatrix([memory[a : a + 16] for a in addresses])
        for lane, i, element in itertools.product(range(32), range(4), range(2)):
            row = 16 * warp + lane // 4 + 8 * (i % 2)
            column = 16 * step + lane % 4 * 2 + 8 * (i // 2) + element
            assert words[lane][i] >> 16 * element & 0xFFFF == block[row, column]


def test_too_many_operands() -> None:
    seven = _program("fffffff", *[("add", i, i + 1) for i in range(6)])
    refusal = ConvDirect().supports(conv((1, 16, 5, 5), 16, seven), ARCHS["sm_80"])
    assert refusal is not None
    assert refusal.reason == "the programs read 7 operands, kernels have 6"


@pytest.mark.some(1)
@pytest.mark.parametrize("arch", ["sm_80", pytest.param("sm_87", marks=pytest.mark.slow), "sm_90a"])
@pytest.mark.parametrize(
    "tile", [PROLOGUE_TILES[0], PROLOGUE_TILES[7]._replace(split=2)], ids=["whole", "split"]
)
def test_it_compiles_without_spills(arch: str, tile: Tile) -> None:
    for cubin in compiled(ConvMma(), conv((2, 136, 7, 7), 128), arch, tile):
        assert cubin.spills == 0


@pytest.mark.some(1)
@pytest.mark.parametrize("split", [False, True])
def test_hopper_compiles_without_spills(split: bool) -> None:
    task, variant = conv((2, 264, 7, 7), 128), ConvWgmma()
    configs = variant.configs(task, ARCHS["sm_90a"])
    if split:
        config = next(c for c in configs if c.split > 1)
    else:
        config = next(c for c in configs if (c.consumers, c.bn, c.split) == (2, 128, 1))
    for cubin in compiled(variant, task, "sm_90a", config):
        assert cubin.spills == 0


@pytest.mark.slow
def test_hopper_tiles_compile_without_spills(rng: np.random.Generator) -> None:
    task, variant = conv((32, 256, 28, 28), 512), ConvWgmma()
    shapes = {(c.consumers, c.bn, c.per_sm): c for c in variant.configs(task, ARCHS["sm_90a"])}
    assert len(shapes) > 10
    for config in some(shapes.values(), 3, rng):
        for cubin in compiled(variant, task, "sm_90a", config):
            assert cubin.spills == 0, config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "dtype", "count"),
    [
        ("sm_80", FP16, 3),
        ("sm_75", FP16, 1),
        ("sm_80", BF16, 1),
        ("sm_80", FP32, 1),
        ("sm_90a", FP16, 1),
    ],
    ids=str,
)
def test_tiles_compile_without_spills(
    arch: str, dtype: DType, count: int, rng: np.random.Generator
) -> None:
    task = conv((2, 136, 7, 7), 128, dtype=dtype, tf32=dtype is FP32)
    device = ARCHS[arch]
    assert ConvMma().supports(task, device) is None
    for tile in some(ConvMma._gemm(task).tiles(device), count, rng):
        for cubin in compiled(ConvMma(), task, arch, tile):
            assert cubin.spills == 0, tile


@pytest.mark.some(1)
@pytest.mark.parametrize("variant", [ConvDirect(), ConvSimt()], ids=str)
def test_plain_kernels_compile(variant: Any) -> None:
    for cubin in compiled(variant, conv((2, 36, 7, 7), 40, dtype=FP32), "sm_80"):
        assert cubin.spills == 0


GPU = [
    *CASES,
    conv((3, 264, 7, 7), 128),
    conv((2, 1000, 14, 13), 136, epilogue=RESIDUAL),
    conv((5, 136, 29, 31), 128, front=120),
    conv((1, 1024, 7, 7), 512, strides=(2, 2)),
    conv((2, 96, 15, 9), 72, GATE, BF16),
    conv((1, 520, 3, 1), 96, PLAIN),
]


@pytest.mark.gpu
@pytest.mark.parametrize("task", GPU, ids=str)
def test_tensor_cores_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    tiles = ConvMma().configs(task, cuda_runner.device)
    split = [t for t in tiles if t.split > 1][:1]
    assert_right(cuda_runner, ConvMma(), task, LIMIT, [tiles[0], *split])


@pytest.mark.gpu
@pytest.mark.parametrize("tile", PROLOGUE_TILES, ids=str)
def test_every_tile_on_the_gpu(cuda_runner: Any, tile: Tile) -> None:
    assert_right(cuda_runner, ConvMma(), conv((3, 136, 13, 11), 136), LIMIT, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*GPU, conv((6, 72, 56, 57), 200)], ids=str)
def test_hopper_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    assert_right(cuda_runner, ConvWgmma(), task, LIMIT, forms(ConvWgmma(), task))


@pytest.mark.gpu
def test_every_hopper_tile_on_the_gpu(cuda_runner: Any) -> None:
    if cuda_runner.device.arch != "sm_90a":
        pytest.skip(f"{cuda_runner.device.arch} has no warpgroup products")
    task = conv((3, 136, 13, 11), 264)
    configs = ConvWgmma().configs(task, cuda_runner.device)
    shapes = {(c.consumers, c.bn, c.per_sm): c for c in configs if c.split == 1}
    assert_right(cuda_runner, ConvWgmma(), task, LIMIT, list(shapes.values()))


@pytest.mark.gpu
def test_without_cp_async_on_the_gpu(cuda_runner: Any) -> None:
    for tile in SYNCHRONOUS[::2]:
        assert_right(cuda_runner, synchronous(ConvMma), CASES[1], LIMIT, [tile])


@pytest.mark.gpu
def test_tf32_on_the_gpu(cuda_runner: Any) -> None:
    task = conv((3, 140, 13, 11), 136, dtype=FP32, tf32=True)
    for tile in ConvMma().configs(task, cuda_runner.device)[:3]:
        assert_right(cuda_runner, ConvMma(), task, TF32, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize(
    "task",
    [
        conv((2, 6, 9, 7), 5, filter_size=(3, 3), pads=(1, 1, 1, 1)),
        conv((1, 6, 5, 4), 4, GATE, groups=2, order=None, constants=False),
        conv((2, 19, 5, 6), 7, dtype=FP64, order=None, epilogue=None),
        conv((2, 40, 9, 7), 33, dtype=FP32),
        *CASES,
    ],
    ids=str,
)
def test_direct_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_right(cuda_runner, ConvDirect(), task, LIMIT)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "task",
    [conv((2, 140, 13, 11), 72, dtype=FP32), conv((1, 20, 9, 9), 33, LOG, FP32), *CASES[:3]],
    ids=str,
)
def test_plain_cores_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    configs = ConvSimt().configs(task, cuda_runner.device)
    assert_right(cuda_runner, ConvSimt(), task, LIMIT, configs[:3])
