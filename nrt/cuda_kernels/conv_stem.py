"""Convolution of an image of few channels on tensor cores (sm_80 on): a network's first layer."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.cuda_kernels.conv_common import (
    ConvShape,
    ceil_div,
    conv_epilogue,
    extra_args,
    refuse_conv,
    store_width,
)
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.stem_tile import Patch, StemTile, packed_weights
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.dtypes import BF16, BYTES, FP16, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "ConvStem"]

OPERANDS: tuple[DType, ...] = (FP16, BF16, *BYTES)

MAX_CHANNELS = 4
MAX_FILTER = 11
MAX_STRIDE = 4

# Registers for addresses, conditions, weights and the epilogue; with what `Patch.registers` counts,
# the tiles that fit a thread's share by this figure compiled without spills.
_OTHER_REGISTERS = 50

# (rows, columns, output rows of a warp, warps along the channels, blocks on an SM at 64 and at 32
# channels).
_SHAPES = (
    (8, 16, 2, 1, 3, 4),
    (8, 16, 2, 2, 2, 0),
    (8, 16, 4, 2, 2, 0),
    (16, 16, 4, 2, 1, 0),
    (16, 16, 2, 1, 1, 2),
    (8, 32, 2, 1, 1, 2),
    (4, 32, 2, 1, 3, 4),
    (4, 16, 1, 1, 4, 4),
    (8, 16, 1, 1, 2, 2),
)


def _patch(problem: Problem) -> Patch:
    s = ConvShape.of(problem)
    planar = s.c > 1 and s.x_strides[3] < s.x_strides[1]
    # Runs of bytes are read in words, which end inside of the tensor.
    runs = s.x_strides[3] == 1 if planar else s.x_strides[3] == s.c and s.x_channels_last
    words = s.dtype in BYTES and runs and problem.inputs[0].span % 4 == 0
    return Patch(s.c, s.r, s.s, *s.stride, planar, s.dtype.itemsize, words)


def _blocks(shape: ConvShape, tile: StemTile) -> tuple[int, int, int]:
    """(tiles of the batch, tiles of an image, tiles of a row of tiles)."""
    per_row = ceil_div(shape.q, tile.tw)
    per_image = ceil_div(shape.p, tile.th) * per_row
    return shape.n * per_image, per_image, per_row


def _per_sm(patch: Patch, tile: StemTile, device: DeviceSpec) -> int:
    """Blocks that an SM holds."""
    return min(tile.per_sm, device.shared_per_sm // (patch.shared_bytes(tile) + 1024))


class ConvStem(Variant):
    """See `stem_kernel` for the recipe; x may have any strides, also those of NCHW."""

    name = "conv_stem"
    ops = (Conv,)
    rank = 5

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        if device.cc < (8, 0):
            return Refusal(f"{device.arch} has no m16n8k16, expected sm_80 or later")
        refusal = refuse_conv(problem, device, dtypes=OPERANDS)
        if refusal is not None:
            return refusal
        s = ConvShape.of(problem)
        if s.groups != 1 or s.dilation != (1, 1):
            return Refusal(f"groups={s.groups}, dilations={s.dilation}: expected 1 and (1, 1)")
        if s.c > MAX_CHANNELS:
            return Refusal(f"the input has {s.c} channels, expected {MAX_CHANNELS} at most")
        if max(s.r, s.s) > MAX_FILTER or max(s.stride) > MAX_STRIDE:
            return Refusal(
                f"filter {(s.r, s.s)} at strides {s.stride}, expected at most {MAX_FILTER} and "
                f"{MAX_STRIDE}"
            )
        if not problem.constants[1]:
            return Refusal("weights are computed at run time, expected a constant to pack")
        if ceil_div(s.k, 32) > 65535:
            return Refusal(f"{s.k} output channels do not fit the launch grid")
        if not self._tiles(problem, device):
            return Refusal(f"no tile's weights and patch fit {device.arch}'s shared memory")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        tiles = self._tiles(problem, device)
        return sorted(tiles, key=lambda tile: self._seconds(problem, tile, device))[:5]

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        moved = problem.nbytes / device.bandwidth + 2e-6
        return max(moved, self._seconds(problem, StemTile(*config), device))

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile, patch, s = StemTile(*config), _patch(problem), ConvShape.of(problem)
        epilogue = conv_epilogue(problem)
        width = store_width(epilogue, problem.y, 1, 8)
        if width == 8 and s.out_dtype.itemsize > 2:
            width = 4
        spec = KernelSpec(
            "nrt.cuda_kernels.stem_kernel:_kernel",
            (
                tuple(tile), tuple(patch), s.dtype, s.out_dtype, epilogue.program, epilogue.extras,
                width,
            ),
            tile.threads,
            tile.per_sm,
        )  # fmt: skip
        tiles, per_image, per_row = _blocks(s, tile)
        xn, xc, xh, xw = s.x_strides
        yn, yk, yp, yq = s.y_strides
        numbers = (
            tiles, per_image, per_row, s.k, s.h, s.w, s.p, s.q, *s.pad,
            xn, xc, xh, xw, yn, yk, yp, yq,
        )  # fmt: skip
        columns = ceil_div(s.k, tile.bn)
        filled = device.multiprocessors * max(1, _per_sm(patch, tile, device))
        launch = Launch(
            spec,
            (max(1, min(tiles, filled // columns)), columns, 1),
            (tile.threads, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
            patch.shared_bytes(tile),
        )
        return Emission((launch,))

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """Weights as `stem_tile.packed_weights` has them."""
        if slot != 1:
            return array
        return packed_weights(array, _patch(problem), StemTile(*config).bn)

    @staticmethod
    def _tiles(problem: Problem, device: DeviceSpec) -> list[StemTile]:
        """The tiles that fit the device."""
        k, patch = ConvShape.of(problem).k, _patch(problem)
        found = []
        for th, tw, mi, wn, per_sm, per_sm_32 in _SHAPES:
            bn, most = (32, per_sm_32) if k <= 32 else (64, per_sm)
            # Quads of pixels leave registers for another block.
            for blocks in (most, most + 1) if most and patch.words else (most,):
                tile = StemTile(th, tw, bn, mi, wn, blocks)
                fits = patch.shared_bytes(tile) <= device.shared_per_block
                share = min(255, 65536 // (tile.threads * max(1, blocks)))
                if blocks and fits and patch.registers(tile) + _OTHER_REGISTERS <= share:
                    found.append(tile)
        return found

    @staticmethod
    def _seconds(problem: Problem, tile: StemTile, device: DeviceSpec) -> float:
        """Tiles of the busiest SM, each bound by tensor cores, shared memory or its latency."""
        shape, patch = ConvShape.of(problem), _patch(problem)
        tiles = _blocks(shape, tile)[0] * ceil_div(shape.k, tile.bn)
        per_sm = max(1, _per_sm(patch, tile, device))
        # In nanoseconds at 1.7 GHz. mma.sync reaches half of Hopper's matrix peak at best. Bytes
        # have twice the rate and steps twice as long.
        rate = (
            (0.5 if device.cc >= (9, 0) else 0.8)
            * device.fp16_flops
            / device.multiprocessors
            * 1e-9
        )
        flops = 2.0 * tile.th * tile.tw * tile.bn * patch.steps * 16
        warps = tile.threads // 32
        pieces = 2 * patch.pieces * ((tile.mi - 1) * patch.sh + patch.r)
        shared = warps * (pieces + patch.steps * tile.bn // tile.wn // 4)
        fetch = patch.held(tile) * warps
        # A product, then a store, then a copy to shared memory; blocks overlap each other's.
        busy = max(flops / rate, (shared + 3.0 * fetch) / 1.7) * 1.3
        alone = 600.0 + busy
        rounds = ceil_div(tiles, device.multiprocessors)
        return 2e-6 + 1e-9 * (800.0 + rounds * max(busy, alone / min(per_sm, rounds)))


VARIANTS: tuple[Variant, ...] = (ConvStem(),)
