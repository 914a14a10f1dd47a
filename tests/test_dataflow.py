"""Which tasks read what: against a record of who wrote each byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from small_graphs import Recipe, make, recipes

from nrt.dataflow import reads
from nrt.lowering import Buffer, Lowered, Place, lower
from nrt.strides import row_pitch


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
        # Rows of one pitch are compared exactly; other views may count one too many.
        if all(
            row_pitch(q.spec) == row_pitch(p.spec) != (0, 0)
            for p in inputs
            for t in lowered.tasks[:index]
            for q in t.outputs
            if q.buffer is p.buffer
        ):
            assert wanted == set(found[index])
        for p in outputs:
            writer.setdefault(p.buffer, {}).update(dict.fromkeys(elements(p).tolist(), index))
