"""scikit-learn's handwritten digits in three parts that never change: train, calibrate, test.

1797 images of 8x8 pixels, ten classes; scikit-learn ships them, nothing is downloaded. They are the
test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PARTS", "Digits", "load", "split"]

Array = np.ndarray[Any, np.dtype[Any]]

PARTS: Mapping[str, float] = {"test": 0.3, "calibration": 0.1, "train": 0.6}
"""Part -> its share of every class, in the order in which shares are dealt out."""

_SEED = 1797
_WHITE = 16.0
"""Pixels are whole numbers from 0 to 16."""


@dataclass(frozen=True)
class Digits:
    """One part of the images.

    Attributes:
        images: fp32 ``[N, 1, 8, 8]`` in [0, 1].
        labels: int64 ``[N]``, 0 to 9.
        indices: of these images in scikit-learn's order.
    """

    images: Array
    labels: Array
    indices: Array

    def __len__(self) -> int:
        return len(self.labels)

    def accuracy(self, scores: Array) -> float:
        """Top-1: the share of images whose largest of ``scores[N, 10]`` is at their label."""
        return float(np.mean(scores.argmax(axis=1) == self.labels))


def split(labels: Array) -> dict[str, Array]:
    """Part -> indices of its images in rising order: disjoint, together all, each class by share.

    What is left over by rounding goes to the last part. The stream of `numpy.random.RandomState` is
    frozen, so the split is the same with every version of NumPy and scikit-learn.
    """
    rng = np.random.RandomState(_SEED)
    parts: dict[str, list[Array]] = {name: [] for name in PARTS}
    for label in np.unique(labels):
        rest = rng.permutation(np.flatnonzero(labels == label))
        total = len(rest)
        for name, share in PARTS.items():
            count = len(rest) if name == list(PARTS)[-1] else round(share * total)
            parts[name].append(rest[:count])
            rest = rest[count:]
    return {name: np.sort(np.concatenate(found)) for name, found in parts.items()}


def load() -> dict[str, Digits]:
    """The parts by name."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = (source.images[:, None] / _WHITE).astype(np.float32)
    labels = source.target.astype(np.int64)
    return {name: Digits(images[i], labels[i], i) for name, i in split(labels).items()}
