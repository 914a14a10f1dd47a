"""What a kernel is asked to solve: an op on tensors of known shape, stride and dtype.

A `Problem` holds no graph, no names and no data. Two layers with equal problems share kernels,
timings and tuning. Movement ops reach kernels only where strides cannot express them: a transposed
copy is a `Reformat` from one set of strides to another.
"""

from __future__ import annotations

import functools
import hashlib
import types
import typing
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from nrt.dtypes import DType, dtype_from_name
from nrt.errors import GraphError, NrtError, PlanError
from nrt.extensions.registry import registry
from nrt.ir.op import Op, TensorType
from nrt.ir.ops import OPS
from nrt.ir.pointwise import Program

__all__ = ["Problem", "Refusal", "TensorSpec", "dense_strides", "op_from_data", "op_to_data"]

_OPS = {op.__name__: op for op in OPS}


def dense_strides(shape: tuple[int, ...], order: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Strides in elements of a dense tensor whose dimensions lie in memory in ``order``."""
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order or range(len(shape))):
        strides[dim] = step
        step *= shape[dim]
    return tuple(strides)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as a kernel sees it.

    Attributes:
        shape: logical shape.
        dtype: element type.
        strides: in elements, per logical dimension; 0 repeats.
    """

    shape: tuple[int, ...]
    dtype: DType
    strides: tuple[int, ...]

    @classmethod
    def dense(
        cls, shape: tuple[int, ...], dtype: DType, order: tuple[int, ...] | None = None
    ) -> TensorSpec:
        return cls(shape, dtype, dense_strides(shape, order))

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype)

    @cached_property
    def size(self) -> int:
        """Number of logical elements."""
        count = 1
        for dim in self.shape:
            count *= dim
        return count

    @cached_property
    def span(self) -> int:
        """Elements from the first to the last one touched, inclusive; 0 when empty."""
        if self.size == 0:
            return 0
        return 1 + sum((d - 1) * s for d, s in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of memory from the first to the last element."""
        return self.span * self.dtype.itemsize

    def is_dense(self, order: tuple[int, ...] | None = None) -> bool:
        """Whether strides are those of a dense tensor in ``order``; dims of size 1 do not count."""
        want = dense_strides(self.shape, order)
        return all(d == 1 or s == w for d, s, w in zip(self.shape, self.strides, want, strict=True))

    @property
    def is_row_major(self) -> bool:
        return self.is_dense(None)

    @property
    def is_nhwc(self) -> bool:
        """Dense channels-last (rank 4)."""
        return len(self.shape) == 4 and self.is_dense((0, 2, 3, 1))

    def __str__(self) -> str:
        tag = "" if self.is_row_major else ("{nhwc}" if self.is_nhwc else f"{{{self.strides}}}")
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{tag}"


@dataclass(frozen=True)
class Refusal:
    """Why a variant cannot solve a problem."""

    reason: str


@dataclass(frozen=True)
class Problem:
    """An op on tensors.

    Attributes:
        op: the operation with its attributes (and its epilogue).
        inputs: specs of its inputs.
        outputs: specs of its outputs.
        constants: per input, whether its data is known at build time (it may then be packed).
    """

    op: Op
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: tuple[bool, ...]

    @property
    def family(self) -> str:
        """The op's name; variants are looked up by it."""
        return self.op.table_name()

    def is_of(self, ops: tuple[type[Op], ...]) -> bool:
        """Whether its op is one of ``ops``; a registered op that was defined again still is."""
        registered = self.op.registered_as is not None
        return type(self.op) in ops or (registered and self.family in [o.table_name() for o in ops])

    @property
    def y(self) -> TensorSpec:
        """The first output."""
        return self.outputs[0]

    @cached_property
    def key(self) -> str:
        """A hash that is the same in every process."""
        return hashlib.sha256(repr(self.to_data()).encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes that must move: each input read once, each output written once."""
        return sum(
            min(t.size, max(t.span, 1)) * t.dtype.itemsize for t in (*self.inputs, *self.outputs)
        )

    def __str__(self) -> str:
        ins = ", ".join(map(str, self.inputs))
        return f"{self.op.name}({ins}) -> {', '.join(map(str, self.outputs))}"

    def to_data(self) -> list[Any]:
        """Plain lists for a plan file; `from_data` is the inverse."""
        return [
            op_to_data(self.op),
            [_spec_to_data(t) for t in self.inputs],
            [_spec_to_data(t) for t in self.outputs],
            list(self.constants),
        ]

    @classmethod
    def from_data(cls, data: Any) -> Problem:
        """Rebuild a problem and check that the op infers these outputs from these inputs.

        Raises:
            PlanError: malformed data, an unknown op, or types that do not fit the op.
        """
        try:
            op, inputs, outputs, constants = data
            problem = cls(
                op_from_data(op),
                tuple(_spec_from_data(t) for t in inputs),
                tuple(_spec_from_data(t) for t in outputs),
                tuple(_flag(c) for c in constants),
            )
            problem.op.check_arity(len(problem.inputs))
            inferred = problem.op.infer(*(t.type for t in problem.inputs))
        except PlanError:
            raise
        except (
            TypeError, ValueError, LookupError, ArithmeticError, RecursionError, NrtError,
        ) as error:  # fmt: skip
            raise PlanError(f"malformed problem: {error}") from error
        if inferred != tuple(t.type for t in problem.outputs):
            raise PlanError(
                f"malformed problem: {problem.op.name} gives {', '.join(map(str, inferred))}, "
                f"the file says {', '.join(str(t.type) for t in problem.outputs)}"
            )
        if len(problem.constants) != len(problem.inputs):
            raise PlanError(
                f"malformed problem: {len(problem.constants)} constant flags for "
                f"{len(problem.inputs)} inputs"
            )
        return problem


def _spec_to_data(spec: TensorSpec) -> list[Any]:
    return [list(spec.shape), spec.dtype.name, list(spec.strides)]


def _spec_from_data(data: Any) -> TensorSpec:
    shape, dtype, strides = data
    spec = TensorSpec(tuple(shape), dtype_from_name(dtype), tuple(strides))
    if not all(type(number) is int for number in (*spec.shape, *spec.strides)):
        raise ValueError(f"shape {spec.shape} and strides {spec.strides} are no whole numbers")
    if len(spec.shape) != len(spec.strides) or min((*spec.shape, *spec.strides, 0)) < 0:
        raise ValueError(f"shape {spec.shape} and strides {spec.strides} do not fit")
    return spec


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"constant flag {value!r} is neither true nor false")
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, DType):
        return {"dtype": value.name}
    if isinstance(value, Program):
        return {"program": value.to_data()}
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if isinstance(value, float):
        return float(value)  # a NumPy scalar is a float that is written otherwise
    if value is None or isinstance(value, bool | int | str):
        return value
    raise GraphError(f"attribute of type {type(value).__name__} cannot be stored in a plan")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        ((tag, inner),) = value.items()
        if tag == "dtype":
            return dtype_from_name(inner)
        if tag == "program":
            return Program.from_data(inner)
        raise ValueError(f"unknown attribute tag {tag!r}")
    if isinstance(value, list | tuple):
        return tuple(_decode(v) for v in value)
    return value


def op_to_data(op: Op) -> list[Any]:
    """``[name, {attribute: value}]``; only attributes that differ from their default."""
    return [
        op.table_name(),
        {
            f.name: _encode(getattr(op, f.name))
            for f in fields(op)
            if getattr(op, f.name) != f.default
        },
    ]


def op_from_data(data: Any) -> Op:
    """Rebuild an op from its name in nrt's own table or the registry; never imports anything.

    Raises:
        PlanError: the op or an attribute is unknown, or an attribute has another type.
    """
    name, attributes = data
    kind: Any = _OPS.get(name) or registry.ops.get(name)
    if kind is None:
        if "::" in name:
            raise PlanError(
                f"op {name!r} is not registered in this process; import what defines it (nrt.op) "
                "before the plan is loaded, or name its file: nrt run PLAN --plugin FILE.py"
            )
        raise PlanError(f"malformed problem: op {name!r} is unknown")
    if not isinstance(attributes, dict):
        raise PlanError(f"malformed problem: {name}: attributes {attributes!r} are no table")
    known = _attribute_types(kind)
    if not set(attributes) <= set(known):
        unknown = sorted(map(str, set(attributes) - set(known)))
        raise PlanError(f"malformed problem: {name} has no attribute {', '.join(unknown)}")
    values = {k: _decode(v) for k, v in attributes.items()}
    for key, value in values.items():
        if not _fits(value, known[key]):
            raise PlanError(f"malformed problem: {name}: attribute {key} is {value!r}")
    op: Op = kind(**values)
    return op


@functools.cache
def _attribute_types(kind: type[Op]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the annotated type of an op's attribute."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        return any(_fits(value, h) for h in arguments)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)
