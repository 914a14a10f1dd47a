"""A stored ONNX tensor as a NumPy array, inside the file or beside it.

Nothing in a model file is trusted. The number of bytes is compared with the shape before anything
is allocated, and external data may lie only in regular files inside the model's own folder: a model
from the Internet must not be able to read ``/etc/passwd`` into a weight, or block on a device file.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import numpy as np
import onnx

from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, DType, dtype_from_onnx
from nrt.errors import ImportModelError, ShapeError
from nrt.ir.op import Array

__all__ = ["describe_tensor", "is_external", "read_tensor"]

_RAW_BITS = {FP16.name: np.uint16, BF16.name: np.uint16, FP8E4M3.name: np.uint8}

# The field of TensorProto that holds the elements of a dtype when raw_data does not.
_FIELDS = {
    "fp32": "float_data",
    "fp64": "double_data",
    "int64": "int64_data",
    "uint64": "uint64_data",
    "uint32": "uint64_data",
}


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the elements lie in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def describe_tensor(tensor: onnx.TensorProto) -> tuple[tuple[int, ...], DType]:
    """Shape and dtype, checked but without looking at the elements.

    Raises:
        ImportModelError: an unknown element type, a negative dimension, or data in segments.
    """
    where = f"tensor '{tensor.name}'"
    try:
        dtype = dtype_from_onnx(tensor.data_type)
    except ShapeError as error:
        raise ImportModelError(f"{where}: {error}") from None
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise ImportModelError(f"{where}: shape {list(shape)} has a negative dimension")
    if tensor.HasField("segment"):
        raise ImportModelError(f"{where}: is stored in segments; save it in one piece")
    return shape, dtype


def read_tensor(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """The elements of ``tensor``.

    Args:
        tensor: from a model.
        folder: the model's folder, where external data must lie; None when there is none.

    Raises:
        ImportModelError: see `describe_tensor`; a number of stored bytes or elements that the shape
            does not ask for; external data that is not where it must be.
    """
    shape, dtype = describe_tensor(tensor)
    count = math.prod(shape)
    if is_external(tensor):
        raw = _read_external(tensor, folder, count * dtype.itemsize)
        return _from_bytes(raw, dtype).reshape(shape)
    if tensor.HasField("raw_data"):
        raw = tensor.raw_data  # protobuf copies at every access
        _check_size(tensor, dtype, len(raw), count * dtype.itemsize, "bytes")
        return _from_bytes(raw, dtype).reshape(shape)
    stored = getattr(tensor, _field(dtype))
    _check_size(tensor, dtype, len(stored), count, "elements")
    values = np.array(stored)
    if dtype.name in _RAW_BITS:
        # Fields of 32 bits carry the bit pattern of narrower floats, not their value.
        flat: Array = values.astype(_RAW_BITS[dtype.name]).view(dtype.numpy)
    elif dtype == BOOL:
        flat = values != 0
    else:
        flat = values.astype(dtype.numpy)
    return flat.reshape(shape)


def _check_size(
    tensor: onnx.TensorProto, dtype: DType, found: int, expected: int, unit: str
) -> None:
    if found != expected:
        raise ImportModelError(
            f"tensor '{tensor.name}': holds {found} {unit}, but {dtype}{list(tensor.dims)} needs "
            f"{expected}; the file is truncated or was edited"
        )


def _field(dtype: DType) -> str:
    return _FIELDS.get(dtype.name, "int32_data")


def _from_bytes(raw: bytes, dtype: DType) -> Array:
    if dtype == BOOL:
        return np.asarray(np.frombuffer(raw, np.uint8) != 0)
    return np.frombuffer(raw, dtype.numpy)


def _read_external(tensor: onnx.TensorProto, folder: Path | None, size: int) -> bytes:
    where = f"tensor '{tensor.name}'"
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ImportModelError(
            f"{where}: its data lies in another file ('{location}'), but the model was given "
            "without a folder; pass the path of the model file instead"
        )
    offset = _number(entries, "offset", 0, where)
    length = _number(entries, "length", size, where)
    if length != size:
        raise ImportModelError(
            f"{where}: external data has length {length}, but the tensor needs {size} bytes"
        )
    path = _inside(folder, location, where)
    try:
        # Not blocking: opening a pipe that nobody writes would wait for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ImportModelError(f"{where}: external data '{location}' is not a regular file")
            if offset + length > info.st_size:
                raise ImportModelError(
                    f"{where}: external data '{location}' has {info.st_size} bytes, but bytes "
                    f"{offset} to {offset + length} are asked for; the file is truncated"
                )
            file.seek(offset)
            raw = file.read(length)
    except OSError as error:
        raise ImportModelError(
            f"{where}: external data '{location}' cannot be read: {error.strerror or error}"
        ) from error
    if len(raw) != length:
        raise ImportModelError(f"{where}: external data '{location}' ended after {len(raw)} bytes")
    return raw


def _number(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ImportModelError(
            f"{where}: external data has {key} {text!r}, expected a whole number"
        )
    return int(text)


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file ``location`` names, if it lies in ``folder`` after all links are followed."""
    reason = None
    if not location or "\0" in location:
        reason = "is not a file name"
    elif Path(location).is_absolute() or location[0] in "/\\" or location[1:2] == ":":
        reason = "is an absolute path"
    elif ".." in location.replace("\\", "/").split("/"):
        reason = "leaves the model's folder through '..'"
    if reason is None:
        try:
            root = folder.resolve(strict=True)
            path = (root / location).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ImportModelError(
                f"{where}: external data {location!r} is not in the model's folder '{folder}'"
            ) from error
        if path.is_relative_to(root):
            return path
        reason = "is a link out of the model's folder"
    raise ImportModelError(
        f"{where}: external data {location!r} {reason}; it must be a file inside that folder"
    )
