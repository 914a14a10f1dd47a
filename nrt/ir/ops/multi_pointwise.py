"""A pointwise program with several results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.dtypes import DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import MANY, array_type, broadcast, compute, finish, kind_of
from nrt.ir.pointwise import Program

__all__ = ["MultiPointwise"]


@dataclass(frozen=True)
class MultiPointwise(Op):
    """Several elementwise results from one pass over the inputs, which broadcast.

    Every result has the shape that the inputs broadcast to. A result of kind ``f`` that is stored
    as integers truncates and saturates, as a Cast does.

    Attributes:
        body: what is computed: one input register per input, one output register per result.
        dtypes: element types of the results.
    """

    arity: ClassVar[tuple[int, int]] = (1, MANY)
    body: Program
    dtypes: tuple[DType, ...]

    def output_count(self) -> int:
        return len(self.dtypes)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        kinds = tuple(kind_of(t.dtype) for t in inputs)
        if kinds != self.body.inputs:
            raise ShapeError(
                f"{self.name}: inputs have kinds {kinds}, the program expects {self.body.inputs}"
            )
        if not self.dtypes or len(self.body.outputs) != len(self.dtypes):
            raise ShapeError(
                f"{self.name}: program has {len(self.body.outputs)} outputs, {len(self.dtypes)} "
                "are stored; expected the same number, at least 1"
            )
        shape = broadcast(self.name, *(t.shape for t in inputs))
        return tuple(TensorType(shape, dtype) for dtype in self.dtypes)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        types = self.infer(*map(array_type, inputs))
        results = self.body.evaluate(*map(compute, inputs))
        # A register may be an input, or the result of several outputs.
        return tuple(
            finish(np.array(np.broadcast_to(result, type_.shape)), type_.dtype)
            for result, type_ in zip(results, types, strict=True)
        )
