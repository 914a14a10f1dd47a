"""Element types and their names in NumPy/ml_dtypes, ONNX and PTX.

A dtype's ``name`` is what users write in ``precision=`` and what a plan stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nrt.errors import ShapeError

__all__ = [
    "BF16",
    "BOOL",
    "BYTES",
    "DTYPES",
    "FP8E4M3",
    "FP16",
    "FP32",
    "FP64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "DType",
    "dtype_from_name",
    "dtype_from_numpy",
    "dtype_from_onnx",
]


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: nrt's name (``fp16``).
        kind: ``float``, ``int`` or ``bool``.
        itemsize: bytes of one element.
        numpy: the NumPy dtype, from ml_dtypes where NumPy has none.
        onnx: the number in ONNX's ``TensorProto.DataType``.
        ptx: the PTX type suffix of a load or store.
    """

    name: str
    kind: str
    itemsize: int
    numpy: np.dtype[Any]
    onnx: int
    ptx: str

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return (dtype_from_name, (self.name,))

    @property
    def is_float(self) -> bool:
        return self.kind == "float"


def _make(name: str, kind: str, numpy: Any, onnx: int, ptx: str) -> DType:
    dtype = np.dtype(numpy)
    return DType(name, kind, dtype.itemsize, dtype, onnx, ptx)


FP32 = _make("fp32", "float", np.float32, 1, "f32")
UINT8 = _make("uint8", "int", np.uint8, 2, "u8")
INT8 = _make("int8", "int", np.int8, 3, "s8")
UINT16 = _make("uint16", "int", np.uint16, 4, "u16")
INT16 = _make("int16", "int", np.int16, 5, "s16")
INT32 = _make("int32", "int", np.int32, 6, "s32")
INT64 = _make("int64", "int", np.int64, 7, "s64")
BOOL = _make("bool", "bool", np.bool_, 9, "u8")
FP16 = _make("fp16", "float", np.float16, 10, "b16")
FP64 = _make("fp64", "float", np.float64, 11, "f64")
UINT32 = _make("uint32", "int", np.uint32, 12, "u32")
UINT64 = _make("uint64", "int", np.uint64, 13, "u64")
BF16 = _make("bf16", "float", ml_dtypes.bfloat16, 16, "b16")
FP8E4M3 = _make("fp8e4m3", "float", ml_dtypes.float8_e4m3fn, 17, "b8")

DTYPES: tuple[DType, ...] = (
    FP32, UINT8, INT8, UINT16, INT16, INT32, INT64, BOOL, FP16, FP64, UINT32, UINT64, BF16, FP8E4M3,
)  # fmt: skip

BYTES: tuple[DType, ...] = (INT8, UINT8)
"""What quantized activations are stored as: uint8 where none of them is negative."""

_BY_NAME = {d.name: d for d in DTYPES}
_BY_NUMPY = {d.numpy: d for d in DTYPES}
_BY_ONNX = {d.onnx: d for d in DTYPES}


def dtype_from_name(name: str) -> DType:
    """The dtype called ``name``.

    Raises:
        ShapeError: there is none; the message lists all.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ShapeError(
            f"dtype {name!r} is unknown; expected one of {', '.join(_BY_NAME)}"
        ) from None


def dtype_from_numpy(dtype: Any) -> DType:
    """The dtype of a NumPy (or ml_dtypes) dtype.

    Raises:
        ShapeError: nrt has no such element type (complex, strings, structures).
    """
    try:
        return _BY_NUMPY[np.dtype(dtype).newbyteorder("=")]
    except (KeyError, TypeError):
        raise ShapeError(
            f"element type {dtype} is unknown; expected one of {', '.join(_BY_NAME)}"
        ) from None


def dtype_from_onnx(number: int) -> DType:
    """The dtype of ONNX's ``TensorProto.DataType`` ``number``.

    Raises:
        ShapeError: nrt has no such element type.
    """
    try:
        return _BY_ONNX[number]
    except KeyError:
        raise ShapeError(
            f"ONNX element type {number} is unknown; expected one of "
            + ", ".join(f"{d.onnx} ({d.name})" for d in DTYPES)
        ) from None
