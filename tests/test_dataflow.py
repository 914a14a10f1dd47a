"""Which tasks read what: against a record of who wrote each byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from small_graphs import Recipe, make, recipes

from nrt.dataflow import overlap, reads
from nrt.dtypes import FP16, FP32, DType
from nrt.lowering import Buffer, Lowered, Place, lower
from nrt.problem import TensorSpec


def places_of(lowered: Lowered) -> list[tuple[list[Place], list[Place]]]:
    return [(list(t.inputs), list(t.outputs)) for t in lowered.tasks]


def elements(place: Place) -> Any:
    """Byte offsets of the first byte of every element."""
    offsets = np.full(place.spec.shape, place.offset, np.int64)
    for dim, stride in enumerate(place.spec.strides):
        steps = np.arange(place.spec.shape[dim]) * stride * place.spec.dtype.itemsize
        offsets += steps.reshape([-1 if d == dim else 1 for d in range(offsets.ndim)])
    return offsets.reshape(-1)


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_reads_are_those_of_a_record_per_byte(recipe: Recipe) -> None:
    lowered = lower(make(recipe, 0))
    writer: dict[Buffer, dict[int, int]] = {}
    found = reads(lowered.tasks)
    for index, (inputs, outputs) in enumerate(places_of(lowered)):
        wanted = {
            writer[p.buffer][at] for p in inputs if p.buffer in writer for at in elements(p)
            if at in writer[p.buffer]
        }  # fmt: skip
        assert wanted <= set(found[index])
        # A view that is no slice of the writer's tensor may count one too many.
        if all(
            q.spec.strides == p.spec.strides
            for p in inputs
            for t in lowered.tasks[:index]
            for q in t.outputs
            if q.buffer is p.buffer
        ):
            assert wanted == set(found[index])
        for p in outputs:
            writer.setdefault(p.buffer, {}).update(dict.fromkeys(elements(p).tolist(), index))


def place(buffer: Buffer, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
          dtype: DType = FP32) -> Place:  # fmt: skip
    return Place(buffer, offset, TensorSpec(shape, dtype, strides))


def test_slices_side_by_side_do_not_overlap() -> None:
    buffer = Buffer("arena", 4096)
    strides = (60, 12, 1)  # of a dense [7, 5, 12]
    left = place(buffer, 0, (7, 5, 3), strides)
    right = place(buffer, 12, (7, 5, 9), strides)
    middle = place(buffer, 8, (7, 5, 4), strides)
    below = place(buffer, 4 * 12, (7, 4, 3), strides)
    one = place(buffer, 4 * 3, (7, 5, 1), strides)
    for a, b, want in (
        (left, right, False),
        (left, middle, True),
        (right, middle, True),
        (left, below, True),
        (right, below, False),
        (one, left, False),
        (one, right, True),
    ):
        assert overlap(a, b) is want
        assert overlap(b, a) is want


def test_other_forms_are_compared_by_their_bytes() -> None:
    buffer = Buffer("arena", 4096)
    dense = place(buffer, 0, (4, 4), (4, 1))
    assert overlap(dense, place(buffer, 60, (2,), (1,)))
    assert not overlap(dense, place(buffer, 64, (2,), (1,)))
    assert overlap(dense, place(buffer, 0, (4, 4), (4, 1), FP16))
    assert not overlap(dense, place(buffer, 0, (0, 4), (4, 1)))
