"""Ops of the user's own: an `Op` class, checked and registered under an ONNX domain and name."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from nrt.dtypes import DType
from nrt.errors import ExtensionError, GraphError, NrtError, ShapeError
from nrt.extensions.registry import Definition, registry
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import MANY, array_type
from nrt.ir.ops.elementwise import Elementwise

__all__ = ["register_op"]

OpType = TypeVar("OpType", bound=type[Op])

_PRECISIONS = {"fp32", "fp16", "bf16"}
_PLAIN = (bool, int, float, str, DType)


def register_op(cls: OpType, domain: str, name: str) -> OpType:
    """Check ``cls``, make it a frozen dataclass, and register it; see `nrt.extend.op`.

    Raises:
        ExtensionError: it is no op, lacks a method, or has an attribute that no plan can store.
    """
    key = f"{domain}::{name}"
    if not (isinstance(cls, type) and issubclass(cls, Op)):
        raise ExtensionError(f"op {key}: expected a class that derives from nrt.Op, got {cls!r}")
    if "__dataclass_params__" not in vars(cls):
        dataclass(frozen=True)(cls)  # changes the class itself
    pointwise = issubclass(cls, Elementwise)
    needed = ("program",) if pointwise else ("infer", "reference")
    for method in needed:
        base: Any = Elementwise if pointwise else Op
        if getattr(cls, method) is getattr(base, method):
            raise ExtensionError(
                f"op {key}: {cls.__name__} defines no {method}(); expected "
                f"{' and '.join(f'{m}()' for m in needed)}"
            )
    _check_attributes(cls, key)
    methods: Any = cls
    # What a class says of itself counts, else its parameters do.
    if cls.arity == Op.arity and "arity" not in vars(cls) and not pointwise:
        methods.arity = _arity(cls.infer)
    if not pointwise:
        methods.infer = _checked_infer(cls.infer, key)
        methods.reference = _checked_reference(cls.reference, key)
        methods.precisions = cls.precisions or ("fp32",)
        if not set(methods.precisions) <= _PRECISIONS:
            raise ExtensionError(
                f"op {key}: precisions = {methods.precisions!r}, expected some of "
                f"{', '.join(sorted(_PRECISIONS))}"
            )
    methods.registered_as = key
    registry.ops.add(key, cls, Definition.of(cls))
    return cls


def _arity(infer: Callable[..., Any]) -> tuple[int, int]:
    """Fewest and most inputs that ``infer`` takes."""
    low = high = 0
    for parameter in list(inspect.signature(infer).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            return low, MANY
        high += 1
        low += parameter.default is parameter.empty
    return low, high


def _check_attributes(cls: type[Op], key: str) -> None:
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise ExtensionError(f"op {key}: an annotation cannot be resolved: {error}") from error
    for field in fields(cls):
        if not _is_storable(hints[field.name]):
            raise ExtensionError(
                f"op {key}: attribute {field.name} is annotated {field.type!r}, expected bool, "
                "int, float, str, nrt.dtypes.DType, a tuple of one of them, or one of them or "
                "None; a tensor is an input, not an attribute"
            )


def _is_storable(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return all(a is types.NoneType or _is_storable(a) for a in arguments)
    if typing.get_origin(hint) is tuple:
        return len(arguments) == 2 and arguments[0] in _PLAIN and arguments[1] is Ellipsis
    return hint in _PLAIN


def _checked_infer(infer: Callable[..., Any], key: str) -> Callable[..., tuple[TensorType, ...]]:
    """``infer``, whose result must be a tuple of one `TensorType` per output."""

    @wraps(infer)
    def checked(self: Op, *inputs: TensorType) -> tuple[TensorType, ...]:
        self.check_arity(len(inputs))
        try:
            result = infer(self, *inputs)
        except NrtError:
            raise
        except Exception as error:
            # A user's code may raise anything; it stays the cause.
            raise ShapeError(
                f"op {key}: infer raised {type(error).__name__}: {error}, for inputs "
                f"{', '.join(map(str, inputs))}"
            ) from error
        count = self.output_count()
        items = result if isinstance(result, tuple) else ()
        types_ = tuple(t for t in items if isinstance(t, TensorType))
        if not len(types_) == len(items) == count:
            raise ShapeError(
                f"op {key}: infer returned {result!r}, expected a tuple of {count} nrt.TensorType"
            )
        return types_

    return checked


def _checked_reference(reference: Callable[..., Any], key: str) -> Callable[..., tuple[Array, ...]]:
    """``reference``, whose results must be of the types that ``infer`` gives."""

    @wraps(reference)
    def checked(self: Op, *inputs: Array) -> tuple[Array, ...]:
        result = reference(self, *inputs)
        expected = self.infer(*(array_type(x) for x in inputs))
        if not isinstance(result, tuple) or len(result) != len(expected):
            what = f"{len(result)} results" if isinstance(result, tuple) else type(result).__name__
            raise GraphError(
                f"op {key}: reference returned {what}, expected a tuple of {len(expected)} arrays"
            )
        arrays = tuple(map(np.asarray, result))
        for index, (array, type_) in enumerate(zip(arrays, expected, strict=True)):
            if array.shape != type_.shape or array.dtype != type_.dtype.numpy:
                raise GraphError(
                    f"op {key}: reference gives {array.dtype}{list(array.shape)} for output "
                    f"{index}, infer says {type_}"
                )
        return arrays

    return checked
