"""What a warp's matrix instructions do, in NumPy: for the emulator of kernels.

Lane l's words lie in row ``l / 4`` and at the four bytes ``l % 4`` of an 8x8 matrix of 16-bit
elements, whatever the elements are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["ldmatrix", "mma", "stmatrix", "warp_mma"]

_ELEMENTS: dict[str, Any] = {
    "f16": np.float16, "f16_k8": np.float16, "bf16": ml_dtypes.bfloat16, "tf32": np.float32,
    "s8": np.int8, "u8": np.int8,
}  # fmt: skip
_LEFT: dict[str, Any] = _ELEMENTS | {"u8": np.uint8}


def ldmatrix(rows: Sequence[np.ndarray], trans: bool = False) -> list[tuple[int, ...]]:
    """What each lane receives of 8x8 matrices; ``rows`` are theirs in turn, 16 bytes each."""
    halves = [row.view(np.uint16) for row in rows]
    matrices = [np.stack(halves[i : i + 8]) for i in range(0, len(rows), 8)]
    if trans:
        matrices = [m.T for m in matrices]
    words = [np.ascontiguousarray(m).view(np.uint32).ravel().tolist() for m in matrices]
    return [tuple(w[lane] for w in words) for lane in range(32)]


def stmatrix(lanes: Sequence[Any]) -> np.ndarray:
    """The 16 bytes of each of the 32 rows of four 8x8 matrices of 16-bit elements.

    ``lanes`` holds a request of each lane, which ends in its four words.
    """
    words = np.array([lane[-4:] for lane in lanes], np.uint32)  # lane, matrix
    return words.reshape(8, 4, 4).transpose(2, 0, 1).copy().view(np.uint8).reshape(32, 16)


def mma(kind: str, lanes: Sequence[Any]) -> list[tuple[float, ...]]:
    """The accumulators of each lane after ``mma.sync`` with a step of 32 bytes.

    ``lanes`` holds ten operands each: four words of a, two of b, four accumulators.
    """
    blocks = [(list(lane[6:]), lane[:4], lane[4:6]) for lane in lanes]
    warp_mma(kind, 1, 1, blocks)
    return [tuple(acc) for acc, _, _ in blocks]


def warp_mma(kind: str, mi_count: int, ni_count: int, lanes: Sequence[Any]) -> None:
    """Add a step of 32 bytes to the accumulators of each lane: (acc, a, b), as `mma_block` has it.

    ``acc`` is changed in place.
    """

    def words(slot: int, element: Any, *shape: int) -> np.ndarray:
        """Elements as [line, column, *shape, element of the word]."""
        raw = np.array([lane[slot][: math.prod(shape)] for lane in lanes], np.uint32)
        values: np.ndarray = raw.view(element).astype(np.float64)
        return values.reshape(8, 4, *shape, -1)

    # Of a's four words the second and fourth are eight rows down, the last two deeper in the row.
    a = words(1, _LEFT[kind], mi_count, 2, 2).transpose(2, 4, 0, 3, 1, 5).reshape(mi_count * 16, -1)
    b = words(2, _ELEMENTS[kind], ni_count, 2).transpose(2, 0, 3, 1, 4).reshape(ni_count * 8, -1)
    product = (a @ b.T).reshape(mi_count, 2, 8, ni_count, 4, 2).transpose(2, 4, 0, 3, 1, 5)
    for (acc, _, _), values in zip(lanes, product.reshape(32, -1).tolist(), strict=True):
        for i, value in enumerate(values):
            acc[i] += int(value) if kind in ("s8", "u8") else value
