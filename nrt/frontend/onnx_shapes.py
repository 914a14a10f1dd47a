"""Shapes of a model's inputs: every symbolic dimension gets its number here.

nrt compiles for fixed shapes. A dimension that the file leaves open must be given by the user;
there is no silent default, not even for the batch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence

import onnx

from nrt.dtypes import dtype_from_onnx
from nrt.errors import ImportModelError, ShapeError
from nrt.frontend.onnx_node import ELEMENT_LIMIT
from nrt.ir.op import TensorType

__all__ = ["Dim", "declared_shapes", "input_types"]

_EXAMPLE = 8  # shown for an open dimension in the hint

Dim = int | str | None
"""A number, a symbol, or nothing known."""


def input_types(
    inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, Sequence[int]] | None
) -> dict[str, TensorType]:
    """Type of every input, with the dimensions in ``shapes`` filled in.

    Args:
        inputs: as the model declares them.
        shapes: input name -> its full shape. A symbol fixed by one input holds for the others.

    Raises:
        ImportModelError: a dimension stays open, contradicts the model or the same symbol in
            another input, or a name in ``shapes`` is not an input.
    """
    given = {name: _numbers(name, shape) for name, shape in (shapes or {}).items()}
    declared = declared_shapes(inputs)
    for name in given:
        if name not in declared:
            raise ImportModelError(
                f"shapes= names '{name}', which is not an input of the model; "
                f"its inputs are {', '.join(declared) or '(none)'}"
            )
    symbols: dict[str, tuple[int, str]] = {}
    for name, shape in given.items():
        _bind(name, declared[name], shape, symbols)
    types: dict[str, TensorType] = {}
    for info in inputs:
        dims = declared[info.name]
        shape = given[info.name] if info.name in given else _resolve(info.name, dims, symbols)
        if math.prod(shape) > ELEMENT_LIMIT:
            raise ImportModelError(f"input '{info.name}': shape {list(shape)} is absurdly large")
        try:
            dtype = dtype_from_onnx(info.type.tensor_type.elem_type)
        except ShapeError as error:
            raise ImportModelError(f"input '{info.name}': {error}") from None
        types[info.name] = TensorType(shape, dtype)
    return types


def declared_shapes(
    inputs: Sequence[onnx.ValueInfoProto],
) -> dict[str, tuple[Dim, ...] | None]:
    """The dimensions of every input as the file has them; None where it has none.

    Raises:
        ImportModelError: an input is no tensor.
    """
    return {i.name: _declared(i) for i in inputs}


def _numbers(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    try:
        numbers = tuple(operator.index(d) for d in shape)
    except TypeError:
        raise ImportModelError(
            f"shapes= gives {shape!r} for input '{name}', "
            "expected whole numbers such as (1, 3, 224, 224)"
        ) from None
    if any(d < 1 for d in numbers):
        raise ImportModelError(
            f"shapes= gives {numbers} for input '{name}'; every dimension must be at least 1"
        )
    return numbers


def _declared(info: onnx.ValueInfoProto) -> tuple[Dim, ...] | None:
    """The dimensions in the file; None when it does not even say how many."""
    if info.type.WhichOneof("value") != "tensor_type":
        raise ImportModelError(
            f"input '{info.name}' is a {info.type.WhichOneof('value') or 'value without a type'}; "
            "expected a tensor"
        )
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        kind = dim.WhichOneof("value")
        if kind == "dim_value":
            if dim.dim_value < 0:
                raise ImportModelError(
                    f"input '{info.name}': dimension {axis} is {dim.dim_value}, expected at least 0"
                )
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param or None)
    return tuple(dims)


def _bind(
    name: str,
    dims: tuple[Dim, ...] | None,
    shape: tuple[int, ...],
    symbols: dict[str, tuple[int, str]],
) -> None:
    if dims is None:
        return
    if len(dims) != len(shape):
        raise ImportModelError(
            f"shapes= gives {list(shape)} for input '{name}', but the model declares "
            f"{len(dims)} dimensions: {_text(dims)}"
        )
    for axis, (dim, number) in enumerate(zip(dims, shape, strict=True)):
        if isinstance(dim, int) and dim != number:
            raise ImportModelError(
                f"shapes= gives {list(shape)} for input '{name}', but the model fixes dimension "
                f"{axis} at {dim}: {_text(dims)}"
            )
        if isinstance(dim, str):
            bound, by = symbols.setdefault(dim, (number, name))
            if bound != number:
                raise ImportModelError(
                    f"shapes= gives symbol '{dim}' two values: {bound} in input '{by}' and "
                    f"{number} in input '{name}'"
                )


def _resolve(
    name: str, dims: tuple[Dim, ...] | None, symbols: dict[str, tuple[int, str]]
) -> tuple[int, ...]:
    if dims is None:
        raise ImportModelError(
            f"input '{name}': the model does not say its shape; give it as "
            f'shapes={{"{name}": (1, 3, 224, 224)}}, or --shapes {name}:1x3x224x224'
        )
    shape: list[int] = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            shape.append(dim)
        elif dim is not None and dim in symbols:
            shape.append(symbols[dim][0])
        else:
            label = f"'{dim}'" if dim else "unnamed"
            hint = [
                d if isinstance(d, int) else 1 if a == 0 else _EXAMPLE for a, d in enumerate(dims)
            ]
            code = f"({', '.join(map(str, hint))}{',' if len(hint) == 1 else ''})"
            raise ImportModelError(
                f"input '{name}': dimension {axis} ({label}) of {_text(dims)} is open, and nrt "
                f'compiles for fixed shapes; give it as shapes={{"{name}": {code}}}, '
                f"or --shapes {name}:{'x'.join(map(str, hint))}"
            )
    return tuple(shape)


def _text(dims: tuple[Dim, ...]) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"
