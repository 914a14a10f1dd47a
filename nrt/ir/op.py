"""The base class of operations.

An op is one frozen dataclass: its fields are the attributes with their types and defaults, `infer`
gives shape and dtype of the outputs, `reference` computes them with NumPy. The reference is the
constant folder, the oracle of every kernel test, and what the CPU target falls back on.
Ops are values: two nodes with equal ops and equal inputs compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import DType
from nrt.errors import ShapeError

__all__ = ["Array", "Op", "TensorType"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a tensor."""

    shape: tuple[int, ...]
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Op:
    """One operation; subclasses add attributes as fields.

    Class attributes:
        arity: fewest and most inputs.
        outputs: number of outputs.
        registered_as: ``domain::name`` of an op that a user registered; see `nrt.extend.op`.
        precisions: what a registered op may compute in, of ``fp32``, ``fp16``, ``bf16``; elsewhere
            its floats are fp32. None: whatever is permitted to the layer.
    """

    arity: ClassVar[tuple[int, int]] = (1, 1)
    outputs: ClassVar[int] = 1
    registered_as: ClassVar[str | None] = None
    precisions: ClassVar[tuple[str, ...] | None] = None

    @property
    def name(self) -> str:
        """The op's name, as reports show it."""
        return type(self).__name__

    @classmethod
    def table_name(cls) -> str:
        """The name that plans and tables of variants know the op by."""
        registered: str | None = vars(cls).get("registered_as")
        return registered or cls.__name__

    def attributes(self) -> dict[str, Any]:
        """Attribute name -> value, in order of declaration."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check_arity(self, count: int) -> None:
        """Raises ShapeError when ``count`` inputs are too few or too many."""
        low, high = self.arity
        if not low <= count <= high:
            expected = f"{low}" if low == high else f"{low} to {high}"
            raise ShapeError(f"{self.name}: got {count} inputs, expected {expected}")

    def output_count(self) -> int:
        """Number of outputs; ops such as Split override it."""
        return self.outputs

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        """Types of the outputs for inputs of these types.

        Raises:
            ShapeError: the inputs do not fit the op or each other.
        """
        raise NotImplementedError(type(self).__name__)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        """The outputs, computed by NumPy; dtypes are those that `infer` gives."""
        raise NotImplementedError(type(self).__name__)
