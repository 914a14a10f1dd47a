"""What a caller hands in, judged against the plan's bindings; aligned host memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nrt.dtypes import DType, dtype_from_name, dtype_from_numpy
from nrt.errors import InputError, ShapeError
from nrt.plan import IoSpec
from nrt.runtime.dlpack import view_dlpack

__all__ = [
    "Array",
    "aligned_bytes",
    "check_names",
    "check_type",
    "host_array",
    "index_of",
    "laid_out",
    "logical_view",
    "memory_view",
    "pair",
]

Array = np.ndarray[Any, Any]

# One cache line, and the widest vector register (AVX-512).
_ALIGN = 64


def aligned_bytes(nbytes: int) -> Array:
    """``uint8[nbytes]`` that starts at a multiple of 64 bytes; not initialized."""
    block = np.empty(nbytes + _ALIGN, np.uint8)
    start = -block.ctypes.data % _ALIGN
    return block[start : start + nbytes]


def logical_view(spec: IoSpec, data: Array) -> Array:
    """``data``, the bytes of a binding, with its dtype, logical shape and the layout's strides."""
    flat = data.reshape(-1).view(dtype_from_name(spec.dtype).numpy)
    return _logical(spec, flat.reshape([spec.shape[d] for d in spec.order]))


def _logical(spec: IoSpec, memory: Array) -> Array:
    return memory.transpose([spec.order.index(d) for d in range(len(spec.shape))])


def memory_view(spec: IoSpec, array: Array) -> Array:
    """The inverse of `logical_view`: a contiguous array, dimensions in memory order.

    ``array`` itself is viewed where it lies as the binding does; any other strides are copied.
    """
    shape = [spec.shape[d] for d in spec.order]
    return np.ascontiguousarray(array.transpose(spec.order)).reshape(shape)


def laid_out(spec: IoSpec, array: Array) -> Array:
    """``array`` with the strides of the binding: itself where it has them, or a copy."""
    return _logical(spec, memory_view(spec, array))


def host_array(spec: IoSpec, value: Any) -> Array:
    """A contiguous NumPy array that holds a binding's bytes: a view of ``value``, or a copy.

    Accepts NumPy arrays, DLPack objects in host memory and what `numpy.asarray` takes, all with the
    logical shape and any strides. The result's dimensions are in memory order.

    Raises:
        InputError: the shape or dtype is another one, or the memory is a GPU's.
    """
    if isinstance(value, np.ndarray):
        array: Array = value
    elif hasattr(value, "__dlpack_device__") and hasattr(value, "__dlpack__"):
        view = view_dlpack(spec.name, value, None)
        if view.on_device:
            raise _on_device(spec, value)
        array = view.to_numpy()
    elif hasattr(value, "__cuda_array_interface__"):
        raise _on_device(spec, value)
    else:
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"input {spec.name!r}: {type(value).__name__} is no array ({error}), wanted {spec}"
            ) from error
    name = array.dtype.name if array.dtype.isnative else array.dtype.str
    check_type(spec, array.shape, _name_of(array), name)
    return memory_view(spec, array)


def _on_device(spec: IoSpec, value: Any) -> InputError:
    return InputError(
        f"input {spec.name!r}: {type(value).__name__} lies in GPU memory, but the plan is for the "
        "CPU; pass a NumPy array or x.cpu()"
    )


def _name_of(array: Array) -> str | None:
    if not array.dtype.isnative:
        return None
    try:
        return dtype_from_numpy(array.dtype).name
    except ShapeError:
        return None


def check_type(spec: IoSpec, shape: tuple[int, ...], dtype: str | None, shown: str) -> None:
    """Refuse another shape or dtype.

    Args:
        spec: the binding.
        shape: what was given.
        dtype: nrt's name of what was given; None where nrt has none.
        shown: the dtype as the caller knows it.

    Raises:
        InputError: shows both, and how to convert.
    """
    if tuple(shape) == tuple(spec.shape) and dtype == spec.dtype:
        return
    hints = []
    if dtype != spec.dtype:
        hints.append(f"convert with x.astype({_spelled(dtype_from_name(spec.dtype))})")
    if tuple(shape) != tuple(spec.shape):
        hints.append("reshape or pad it, or rebuild the plan for this shape")
    raise InputError(
        f"input {spec.name!r}: got {shown}[{', '.join(map(str, shape))}], expected {spec}; "
        + "; ".join(hints)
    )


def _spelled(dtype: DType) -> str:
    module = "np" if dtype.numpy.type.__module__ == "numpy" else "ml_dtypes"
    return f"{module}.{dtype.numpy.name}"


def check_names(specs: Sequence[IoSpec], given: Mapping[str, Any]) -> None:
    """Refuse missing and unknown names.

    Raises:
        InputError: lists them, and what the plan expects.
    """
    names = {spec.name for spec in specs}
    missing = [spec.name for spec in specs if spec.name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        raise InputError(f"inputs: missing {missing}, unknown {unknown}; expected {_listed(specs)}")


def index_of(what: str, specs: Sequence[IoSpec], name: str) -> int:
    """Position of the binding called ``name``.

    Raises:
        InputError: there is none; lists all.
    """
    for index, spec in enumerate(specs):
        if spec.name == name:
            return index
    raise InputError(f"{what} {name!r} is unknown; expected one of {_listed(specs)}")


def pair(specs: Sequence[IoSpec], values: Sequence[Any]) -> dict[str, Any]:
    """Positional inputs by name.

    Raises:
        InputError: another number of them.
    """
    if len(values) != len(specs):
        raise InputError(f"got {len(values)} input(s), expected {len(specs)}: {_listed(specs)}")
    return {spec.name: value for spec, value in zip(specs, values, strict=True)}


def _listed(specs: Sequence[IoSpec]) -> str:
    return ", ".join(f"{spec.name!r} {spec}" for spec in specs) or "no inputs"
