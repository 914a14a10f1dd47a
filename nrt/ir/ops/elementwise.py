"""The base of elementwise ops, and those that are not plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.dtypes import BOOL, FP16, DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import MANY, array_type, broadcast, cast, compute, finish, kind_of
from nrt.ir.pointwise import Builder, Program

__all__ = ["Cast", "Elementwise", "Pointwise", "Where", "kind_of"]

_KIND_NAMES = {"f": "float", "i": "integer", "b": "bool"}


@dataclass(frozen=True)
class Elementwise(Op):
    """An op that computes each output element from one element of each input.

    Inputs broadcast as in NumPy. What it computes is its `program`: the reference evaluates it,
    fusion composes it, and the code generators compile it.

    Class attributes:
        accepts: kinds that the inputs may have.
        same: all inputs must have one dtype.
    """

    accepts: ClassVar[str] = "fi"
    same: ClassVar[bool] = True

    def program(self, kinds: tuple[str, ...]) -> Program:
        """The pointwise program for inputs of these kinds (``f``, ``i``, ``b``); one output."""
        raise NotImplementedError(type(self).__name__)

    def result_dtype(self, *dtypes: DType) -> DType:
        """Element type of the output; that of the first input unless an op says otherwise."""
        return dtypes[0]

    def check_dtypes(self, *dtypes: DType) -> None:
        """Check that the op takes inputs of these dtypes.

        Raises:
            ShapeError: a kind that the op does not take, or dtypes that differ.
        """
        for index, dtype in enumerate(dtypes):
            if kind_of(dtype) not in self.accepts:
                wanted = " or ".join(_KIND_NAMES[k] for k in self.accepts)
                raise ShapeError(f"{self.name}: input {index} is {dtype}, expected {wanted}")
        if self.same and len(set(dtypes)) > 1:
            raise ShapeError(
                f"{self.name}: inputs are {', '.join(map(str, dtypes))}; expected one dtype, "
                "insert a Cast"
            )

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        dtypes = [t.dtype for t in inputs]
        self.check_dtypes(*dtypes)
        shape = broadcast(self.name, *(t.shape for t in inputs))
        return (TensorType(shape, self.result_dtype(*dtypes)),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        types = [array_type(x) for x in inputs]
        (out,) = self.infer(*types)
        program = self.program(tuple(kind_of(t.dtype) for t in types))
        (result,) = program.evaluate(*(compute(x) for x in inputs))
        if any(result is x for x in inputs):
            result = result.copy()
        if result.shape != out.shape:
            result = np.broadcast_to(result, out.shape)
        return (finish(result, out.dtype),)


@dataclass(frozen=True)
class Where(Elementwise):
    """``condition ? a : b``; inputs ``condition`` (bool), ``a``, ``b``."""

    arity: ClassVar[tuple[int, int]] = (3, 3)

    def check_dtypes(self, *dtypes: DType) -> None:
        condition, a, b = dtypes
        if condition is not BOOL:
            raise ShapeError(f"{self.name}: condition is {condition}, expected bool")
        if a is not b:
            raise ShapeError(
                f"{self.name}: branches are {a} and {b}; expected one dtype, insert a Cast"
            )

    def result_dtype(self, *dtypes: DType) -> DType:
        return dtypes[1]

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("where", 0, 1, 2))


@dataclass(frozen=True)
class Cast(Elementwise):
    """Conversion to another element type.

    Floats truncate toward zero and saturate when they become integers. Inside a fused program an
    integer is as wide as the machine's: a cast to a narrower integer type wraps only when stored.

    Attributes:
        to: the element type of the output.
    """

    to: DType
    accepts: ClassVar[str] = "fib"

    def result_dtype(self, *dtypes: DType) -> DType:
        return self.to

    def program(self, kinds: tuple[str, ...]) -> Program:
        kind = kind_of(self.to)
        b = Builder(kinds)
        register = 0 if kinds[0] == kind else b(f"to_{kind}", 0)
        if self.to is FP16:
            # A fused cast must round as a stored value would have been.
            register = b("fp16", register)
        return b.build(register)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        # The program converts through float32, which is too narrow for int64 to fp64.
        (x,) = inputs
        if self.to is BOOL:
            return (np.asarray(compute(x) != 0),)
        return (cast(x, self.to),)


@dataclass(frozen=True)
class Pointwise(Elementwise):
    """A fused chain of elementwise ops; inputs broadcast.

    Attributes:
        body: what it computes; one output, one input register per input.
        dtype: element type of the output.
    """

    arity: ClassVar[tuple[int, int]] = (1, MANY)
    body: Program
    dtype: DType

    def check_dtypes(self, *dtypes: DType) -> None:
        if len(self.body.outputs) != 1:
            raise ShapeError(
                f"{self.name}: program has {len(self.body.outputs)} outputs, expected 1"
            )
        kinds = tuple(kind_of(d) for d in dtypes)
        if kinds != self.body.inputs:
            raise ShapeError(
                f"{self.name}: inputs have kinds {kinds}, the program expects {self.body.inputs}"
            )

    def result_dtype(self, *dtypes: DType) -> DType:
        return self.dtype

    def program(self, kinds: tuple[str, ...]) -> Program:
        return self.body
