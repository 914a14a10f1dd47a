"""Hashes that tell whether a calibration belongs to a model and to data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from nrt.dtypes import BOOL, INT32, INT64
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.ops import Expand, Reshape, Resize, Slice
from nrt.ir.value import Value

__all__ = ["DataDigest", "model_digest"]

_SHAPED = (Expand, Reshape, Resize, Slice)
"""Ops whose attributes hold sizes of tensors: those of a batch of 1 differ from those of 32."""

_POSITIONS = (BOOL, INT32, INT64)
"""Types of computed positions and masks, whose sizes are those of tensors too."""


def model_digest(graph: Graph) -> str:
    """SHA-256 of a model: its nodes, their names, connections and attributes, and its weights.

    ``graph`` is as it was imported. Its inputs' shapes do not count, and neither do integers that
    an import computes from them: ranges that were measured on single images hold for batches.
    """
    digest = hashlib.sha256()

    def add(*parts: Any) -> None:
        digest.update(repr(parts).encode())

    hashes = {value: _constant(value) for value in graph.constants}
    for value in graph.inputs:
        add("input", value.name, value.dtype.name)
    for node in graph.nodes:
        inputs = [hashes.get(v, v.name) for v in node.inputs]
        add(node.name, _op(node.op), inputs, [v.name for v in node.outputs])
    for name, value in graph.outputs.items():
        add("output", name, hashes.get(value, value.name))
    return digest.hexdigest()


def _op(op: Op) -> tuple[Any, ...]:
    return (op.name,) if isinstance(op, _SHAPED) else (op.name, op.attributes())


def _constant(value: Value) -> str:
    if value.dtype in _POSITIONS:
        return value.dtype.name
    assert value.constant is not None
    data = np.ascontiguousarray(value.constant)
    head = f"{value.dtype} {data.shape}".encode()
    return hashlib.sha256(head + data.tobytes()).hexdigest()


class DataDigest:
    """A hash of a set of samples, the same in whatever order and batches they come.

    Every sample has a SHA-256 of its own; their sum modulo 2^256 is the set's.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sum = 0

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Add samples: the arrays' rows, if all of them have as many; else one sample."""
        lengths = {len(a) if a.ndim else -1 for a in arrays.values()}
        count = lengths.pop() if len(lengths) == 1 else -1
        names = sorted(arrays)
        rows = [{n: arrays[n] for n in names}] if count < 0 else (
            {n: arrays[n][k] for n in names} for k in range(count)
        )  # fmt: skip
        for row in rows:
            one = hashlib.sha256()
            for name, array in row.items():
                one.update(f"{name} {array.dtype} {array.shape} ".encode())
                one.update(np.ascontiguousarray(array).tobytes())
            self._sum = (self._sum + int.from_bytes(one.digest(), "big")) % 2**256
            self.samples += 1

    def hexdigest(self) -> str:
        """Of all that was added, as 64 hexadecimal digits."""
        return f"{self._sum:064x}"
