"""Copies between dense planes and dense pixels of two to four channels, at any size, both ways.

A network's image enters as planes and is computed on as pixels; what leaves goes the other way.
Neither the number of pixels nor of channels need suit a vector, as at 299 x 299 x 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.copy_walk import Copy, Walk, walk
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
)
from nrt.cuda_kernels.strided import Geometry
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Scalar
from nrt.dtypes import DType
from nrt.ir.ops.common import kind_of
from nrt.problem import Problem, Refusal

__all__ = ["CopyInterleave"]

_MAX_CHANNELS = 4

# Four runs of 256 pixels: with three fp32 planes, 12 loads and 48 bytes in flight a thread.
_RUN = 1024


class _Form(NamedTuple):
    """A copy as ``images`` transposed matrices.

    Attributes:
        images: number of images.
        pixels: of an image.
        channels: of a pixel.
        joins: whether planes become pixels; else pixels become planes.
    """

    images: int
    pixels: int
    channels: int
    joins: bool


def _form(geometry: Geometry) -> _Form | None:
    """The images of a copy, if both of its ends are dense; the shorter side is the channels."""
    if geometry.rank not in (2, 3):
        return None
    *outer, a, b = geometry.shape
    image = [a * b] * len(outer)
    if geometry.strides != ((*image, b, 1), (*image, 1, a)):
        return None
    images = outer[0] if outer else 1
    return _Form(images, a, b, True) if b <= a else _Form(images, b, a, False)


class CopyInterleave(Copy):
    """Planes to pixels of 2 to 4 channels or back, both dense: runs of pixels across images."""

    name = "copy_interleave"
    rank = 4

    def _check(self, found: Walk) -> Refusal | None:
        for dtype in (found.source, found.target):
            if dtype.itemsize > 4:
                return Refusal(f"elements of {dtype.itemsize} bytes, at most 4")
        form = _form(found.geometry)
        if form is None:
            return Refusal("not dense planes to dense pixels, nor back")
        if form.channels > _MAX_CHANNELS:
            return Refusal(f"{form.channels} interleaved channels, at most {_MAX_CHANNELS}")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int, int, int]]:
        """(threads, neighbouring pixels, groups of them a thread)."""
        found = walk(problem)
        form = _form(found.geometry)
        assert form is not None
        ends = (found.source, found.target)
        planes, pixels = (t.itemsize for t in (ends if form.joins else ends[::-1]))
        # 16 bytes of a plane, at most 8 pixels' registers; whole pixels that go without shared
        # memory fill 16 bytes at most.
        width = min(8, 16 // planes)
        if form.channels != 3:
            width = min(width, 16 // (form.channels * pixels))
        while form.pixels % width:
            width //= 2
        widths = list(dict.fromkeys((width, 1)))
        if form.channels == 3 and pixels == 4:
            # Groups of pixels of 12 bytes meet in the banks of shared memory, single ones do not.
            widths.reverse()
        large = [(256, w, max(1, 4 // w)) for w in widths]
        if form.images * form.pixels < 2 * _RUN * device.multiprocessors:
            # Long runs would leave SMs without one.
            return [(128, w, max(1, 2 // w)) for w in widths] + large[:1]
        return [*large, (128, widths[0], max(2, 8 // widths[0]))]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        del device
        threads, width, groups = config
        found = walk(problem)
        form = _form(found.geometry)
        assert form is not None
        total = form.images * form.pixels
        if total == 0:
            return Emission(())
        run = threads * width * groups
        spec = KernelSpec(
            "nrt.cuda_kernels.copy_planes:_kernel",
            (
                found.source, found.target, form.channels, form.joins, threads, width, groups,
                form.pixels >= run,
            ),
            threads,
        )  # fmt: skip
        numbers = (total, form.pixels, (form.channels - 1) * form.pixels)
        launch = Launch(
            spec,
            (-(-total // run), 1, 1),
            (threads, 1, 1),
            (In(0), Out(), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> float:
        del config
        # Every access of a warp is whole lines, so that what else takes such a copy comes after.
        return problem.nbytes / device.bandwidth + 1.9e-6


# -- the kernel ------------------------------------------------------------------------------------


class _Run(NamedTuple):
    """What the lines of a kernel depend on: the parameters of `_kernel`."""

    source: DType
    target: DType
    channels: int
    joins: bool
    threads: int
    width: int
    groups: int
    long: bool

    @property
    def length(self) -> int:
        """Pixels of a block."""
        return self.threads * self.width * self.groups

    @property
    def item(self) -> int:
        """Bytes of an element on the pixels' side."""
        return (self.target if self.joins else self.source).itemsize

    @property
    def direct(self) -> bool:
        """Whether a group's pixels are one word, or 2 or 4, which need no shared memory."""
        return self.width * self.channels * self.item in (4, 8, 16)

    @property
    def elements(self) -> list[tuple[int, int]]:
        """(pixel of the group, channel) in the order of pixels in memory."""
        return [(p, c) for p in range(self.width) for c in range(self.channels)]

    def convert(self, value: str) -> str:
        return convert_text(value, kind_of(self.source), self.target)


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _either(flag: str, vectors: Sequence[str], singles: Sequence[str]) -> list[str]:
    """Lines that take ``vectors`` where ``flag`` holds; without a flag there are no vectors."""
    if not flag:
        return list(singles)
    return [f"if {flag}:", *_indent(vectors), "else:", *_indent(singles)]


def _place_lines(run: _Run) -> list[str]:
    """For group j: first pixel of the run ``l{j}``, of all ``g{j}``, and its places.

    ``h{j}`` is the pixel clamped to the last group, ``p{j}_{c}`` its place in plane c, ``o{j}`` its
    place among the pixels. Groups never cross images: their width divides an image.
    """
    lines = []
    for j in range(run.groups):
        lines += [
            f"l{j} = u32(u32(t + u32({j * run.threads})) * u32({run.width}))",
            f"g{j} = u32(base + l{j})",
            f"h{j} = u32(min_(g{j}, u32(n - u32({run.width}))))",
            f"r{j} = u32(h{j} - first)",
            f"i{j} = u32(image + u32(r{j} >= hw))" if run.long else
            f"i{j} = u32(image + u32(r{j} // hw))",
            f"p{j}_0 = u32(h{j} + u32(i{j} * step))",
            *(f"p{j}_{c} = u32(p{j}_{c - 1} + hw)" for c in range(1, run.channels)),
            f"o{j} = u32(h{j} * u32({run.channels}))",
        ]  # fmt: skip
    return lines


def _read_planes(run: _Run) -> list[str]:
    """Lines that load ``v{j}_{c}_{p}``; all groups' loads are in flight at once."""
    vectors, singles = [], []
    for j in range(run.groups):
        for c in range(run.channels):
            vectors += load_lines(f"v{j}_{c}", "x", f"p{j}_{c}", run.source, run.width)[0]
            singles += [
                f"v{j}_{c}_{p} = load_{run.source}(x, u32(p{j}_{c} + u32({p})))"
                for p in range(run.width)
            ]
    return _either("x_whole" if run.width > 1 else "", vectors, singles)


def _write_planes(run: _Run, j: int) -> list[str]:
    vectors, singles = [], []
    for c in range(run.channels):
        values = [run.convert(f"v{j}_{c}_{p}") for p in range(run.width)]
        vectors += store_lines("y", f"p{j}_{c}", run.target, values)
        singles += [
            f"store_{run.target}(y, u32(p{j}_{c} + u32({p})), {value})"
            for p, value in enumerate(values)
        ]
    return _either("y_whole" if run.width > 1 else "", vectors, singles)


def _read_pixels(run: _Run) -> list[str]:
    """Lines that load ``v{j}_{c}_{p}`` of all groups from the pixels themselves."""
    vectors, singles = [], []
    for j in range(run.groups):
        lines, names = load_lines(f"e{j}", "x", f"o{j}", run.source, len(run.elements))
        vectors += lines
        for k, ((p, c), name) in enumerate(zip(run.elements, names, strict=True)):
            vectors.append(f"v{j}_{c}_{p} = {name}")
            singles.append(f"v{j}_{c}_{p} = load_{run.source}(x, u32(o{j} + u32({k})))")
    return _either("x_whole", vectors, singles)


def _write_pixels(run: _Run, j: int) -> list[str]:
    values = [run.convert(f"v{j}_{c}_{p}") for p, c in run.elements]
    singles = [
        f"store_{run.target}(y, u32(o{j} + u32({k})), {value})" for k, value in enumerate(values)
    ]
    return _either("y_whole", store_lines("y", f"o{j}", run.target, values), singles)


def _stage_lines(run: _Run) -> list[str]:
    """Lines that move the run between ``tile`` and the pixels, 16 bytes a thread.

    What is left at the end moves by elements, and so does all of it where the pixels' address is
    not a multiple of 16.
    """
    per_piece = 16 // run.item
    pieces = -(-run.length * run.channels // (per_piece * run.threads))
    side = "y" if run.joins else "x"
    lines = [
        "bottom = shared_address(tile)",
        f"start = u32(base * u32({run.channels}))",
        f"count = u32(u32(min_(u32(n - base), u32({run.length}))) * u32({run.channels}))",
        f"full = u32(u32(count // u32({per_piece})) * u32({side}_whole))",
    ]
    moves = []
    for k in range(pieces):
        place = f"at({side}, u32(start + u32(k{k} * u32({per_piece}))))"
        cell = f"u32(bottom + u32(k{k} * u32(16)))"
        words = ", ".join(f"w{k}_{i}" for i in range(4))
        lines.append(f"k{k} = u32(t + u32({k * run.threads}))")
        moves.append(f"if k{k} < full:")
        if run.joins:
            moves += [f"    {words} = ld_shared_v4({cell})", f"    st4({place}, {words})"]
        else:
            lines.append(f"{words} = ld4_if({place}, u32(k{k} < full))")
            moves.append(f"    st_shared_v4({cell}, {words})")
    outside = "u32(start + e)"
    return [
        *lines,
        *moves,
        f"e = u32(u32(full * u32({per_piece})) + t)",
        "while e < count:",
        f"    y[{outside}] = tile[e]" if run.joins else f"    tile[e] = x[{outside}]",
        f"    e = u32(e + u32({run.threads}))",
    ]


def _cell(run: _Run, j: int, k: int) -> str:
    """Index of element ``k`` of group ``j`` in ``tile``."""
    return f"u32(u32(l{j} * u32({run.channels})) + u32({k}))"


def _body_lines(run: _Run) -> list[str]:
    groups = range(run.groups)
    lines = _place_lines(run)
    if run.joins:
        lines += _read_planes(run)
        if run.direct:
            for j in groups:
                lines += [f"if g{j} < n:", *_indent(_write_pixels(run, j))]
            return lines
        for j in groups:
            for k, (p, c) in enumerate(run.elements):
                value = run.convert(f"v{j}_{c}_{p}")
                lines.append(f"store_{run.target}(tile, {_cell(run, j, k)}, {value})")
        return [*lines, "cuda.syncthreads()", *_stage_lines(run)]
    lines += _read_pixels(run) if run.direct else [*_stage_lines(run), "cuda.syncthreads()"]
    for j in groups:
        fetch = [
            f"v{j}_{c}_{p} = load_{run.source}(tile, {_cell(run, j, k)})"
            for k, (p, c) in enumerate(run.elements)
        ]
        lines.append(f"if g{j} < n:")
        lines += _indent([*([] if run.direct else fetch), *_write_planes(run, j)])
    return lines


def _kernel(
    source: DType,
    target: DType,
    channels: int,
    joins: bool,
    threads: int,
    width: int,
    groups: int,
    long: bool,
) -> tuple[Any, Any]:
    """Planes to pixels (``joins``) or back, in runs of pixels that pay no heed to images.

    A block takes ``threads * width * groups`` pixels in the order of all images. On the planes'
    side a warp reads or writes 32 neighbouring groups of ``width`` pixels in each plane: whole
    lines, whatever the size of an image. Where a group's pixels are 4, 8 or 16 bytes (2 or 4
    channels) the thread moves them itself, and a warp's are again whole lines. Else (3 channels)
    the run is laid out in shared memory as the pixels' side has it and moves 16 bytes a thread: a
    run starts at a multiple of 16 bytes, since it has a multiple of 16 pixels. Of single pixels of
    three 4-byte elements no two lanes meet in a bank, of three 2-byte elements two do.

    One division finds the block's first image. Where an image has at least a run's pixels
    (``long``), the run sees one other, else each group divides.

    Bytes: each element once. At 32 x 3 x 299 x 299, fp32 to fp16: 34 MB read, 17 MB written.

    Kernel parameters: x, y, pixels of all images, pixels of an image, and of ``channels - 1``
    images: what lies between a pixel's number and its place in plane 0, per image.
    """
    run = _Run(source, target, channels, joins, threads, width, groups, long)
    head = [
        "t = u32(cuda.threadIdx.x)",
        f"base = u32(u32(cuda.blockIdx.x) * u32({run.length}))",
        "image = u32(base // hw)",
        "first = u32(image * hw)",
        "x_whole = (at(x, u32(0)) & i64(15)) == i64(0)",
        "y_whole = (at(y, u32(0)) & i64(15)) == i64(0)",
    ]
    namespace = kernel_namespace(source, target) | {
        "ld4_if": ptx.ld_global_nc_v4_if,
        "ld_shared_v4": ptx.ld_shared_v4,
        "st_shared_v4": ptx.st_shared_v4,
        "shared_address": ptx.shared_address,
    }
    if not run.direct:
        namespace["cell"] = pointer(target if joins else source).dtype
        # The alignment is what accesses of 16 bytes need, not what elements have.
        head.insert(0, f"tile = cuda.shared.array({run.length * channels}, cell, alignment=16)")
    lines = ["def kernel(x, y, n, hw, step):", *_indent([*head, *_body_lines(run)])]
    kernel = kernel_function("\n".join(lines) + "\n", namespace)
    return kernel, types.void(pointer(source), pointer(target), *[types.uint32] * 3)
