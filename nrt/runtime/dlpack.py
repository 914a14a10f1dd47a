"""Arrays of other libraries: DLPack capsules, read and made; ``__cuda_array_interface__``, read.

The structures are those of ``dlpack.h`` 0.8, which every producer speaks when it is not asked for a
newer one (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from nrt.dtypes import dtype_from_name, dtype_from_numpy
from nrt.errors import InputError, ShapeError

__all__ = ["CPU", "CUDA", "ArrayView", "export_dlpack", "view_cuda_array", "view_dlpack"]

CPU, CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_ON_HOST = (CPU, _CUDA_HOST)
_ON_DEVICE = (CUDA, _CUDA_MANAGED)

_CODES = {
    "int8": (0, 8), "int16": (0, 16), "int32": (0, 32), "int64": (0, 64),
    "uint8": (1, 8), "uint16": (1, 16), "uint32": (1, 32), "uint64": (1, 64),
    "fp16": (2, 16), "fp32": (2, 32), "fp64": (2, 64),
    "bf16": (4, 16), "bool": (6, 8), "fp8e4m3": (10, 8),
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


_NAME = b"dltensor"
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
# Prototypes of our own: argtypes set on ctypes.pythonapi's functions would be seen by everyone.
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# By address: in a destructor the capsule must not be referenced again.
_dying_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

# What a consumer holds, by the address of its structure, until it calls the deleter.
_exported: dict[int, tuple[Any, ...]] = {}


def _forget(address: int) -> None:
    _exported.pop(address, None)


def _destroy(capsule: int) -> None:
    # A consumer renames the capsule and calls the deleter itself; an unused one is ours to drop.
    if _dying_is(capsule, _NAME):
        _forget(_dying_pointer(capsule, _NAME))


_DELETER = _Deleter(_forget)
_DESTRUCTOR = _Destructor(_destroy)


@dataclass(frozen=True)
class ArrayView:
    """Memory of another library.

    Attributes:
        ptr: address of the first element.
        shape: shape.
        strides: in elements.
        dtype: nrt's name.
        on_device: whether the memory is the GPU's.
        device: ordinal of the GPU; 0 on the host.
        owner: keeps the memory alive.
    """

    ptr: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    on_device: bool
    device: int
    owner: Any

    @property
    def contiguous(self) -> bool:
        """Whether it is dense and row-major; dimensions of size 1 do not count."""
        return self.lies_as(_dense(self.shape))

    def lies_as(self, strides: tuple[int, ...]) -> bool:
        """Whether its elements lie as ``strides`` say; dimensions of size 1 do not count."""
        return 0 in self.shape or all(
            d == 1 or s == w for d, s, w in zip(self.shape, self.strides, strides, strict=True)
        )

    def to_numpy(self) -> np.ndarray[Any, Any]:
        """A dense copy of host memory that keeps the order of its dimensions."""
        dtype = dtype_from_name(self.dtype).numpy
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        span = 1 + sum((d - 1) * s for d, s in zip(self.shape, self.strides, strict=True))
        block = (ctypes.c_uint8 * (span * dtype.itemsize)).from_address(self.ptr)
        steps = tuple(s * dtype.itemsize for s in self.strides)
        memory = np.ctypeslib.as_array(block)
        view: np.ndarray[Any, Any] = np.ndarray(self.shape, dtype, memory, strides=steps)
        return np.array(view, order="K", copy=True)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def view_dlpack(name: str, value: Any, stream: int | None) -> ArrayView:
    """What ``value.__dlpack__`` gives; ``stream`` is the stream that will read device memory.

    Raises:
        InputError: on input ``name``: an unknown device or dtype, a stride below 0, or the producer
            refuses.
    """
    kind, index = value.__dlpack_device__()
    if kind not in _ON_HOST + _ON_DEVICE:
        raise InputError(
            f"input {name!r}: lies on DLPack device type {int(kind)}, expected host or CUDA memory"
        )
    on_device = kind in _ON_DEVICE
    try:
        capsule = value.__dlpack__(stream=stream) if on_device else value.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"input {name!r}: {type(value).__name__}.__dlpack__: {error}") from error
    address = _capsule_pointer(capsule, _NAME)
    tensor = _Managed.from_address(address).tensor
    code = (tensor.dtype.code, tensor.dtype.bits)
    if tensor.dtype.lanes != 1 or code not in _NAMES:
        raise InputError(
            f"input {name!r}: DLPack element type {code} x{tensor.dtype.lanes} is unknown; "
            f"expected one of {', '.join(_CODES)}"
        )
    shape = tuple(int(tensor.shape[i]) for i in range(tensor.ndim))
    strides = (
        tuple(int(tensor.strides[i]) for i in range(tensor.ndim))
        if tensor.strides
        else _dense(shape)
    )
    if min(strides, default=0) < 0:
        raise InputError(f"input {name!r}: strides {strides} run backwards; pass a copy")
    pointer = (tensor.data or 0) + tensor.byte_offset
    # The capsule stays ours and unused: its own destructor tells the producer.
    return ArrayView(
        pointer, shape, strides, _NAMES[code], on_device, int(index) if on_device else 0, capsule
    )


def view_cuda_array(name: str, value: Any, device: int) -> tuple[ArrayView, int | None]:
    """What ``value.__cuda_array_interface__`` gives, and the stream its data is ordered on.

    Raises:
        InputError: on input ``name``: an element type that nrt does not know, or a stride below 0.
    """
    interface = value.__cuda_array_interface__
    shape = tuple(int(d) for d in interface["shape"])
    try:
        dtype = dtype_from_numpy(interface["typestr"])
    except ShapeError as error:
        raise InputError(f"input {name!r}: {error}") from error
    steps = interface.get("strides")
    strides = _dense(shape) if steps is None else tuple(int(s) // dtype.itemsize for s in steps)
    if min(strides, default=0) < 0:
        raise InputError(f"input {name!r}: strides {strides} run backwards; pass a copy")
    view = ArrayView(int(interface["data"][0]), shape, strides, dtype.name, True, device, value)
    return view, interface.get("stream")


def export_dlpack(
    owner: Any,
    ptr: int,
    shape: tuple[int, ...],
    dtype: str,
    device: tuple[int, int],
    strides: tuple[int, ...] | None = None,
) -> Any:
    """A capsule ``dltensor`` over dense memory; ``owner`` lives until the consumer is done.

    Args:
        owner: keeps the memory alive.
        ptr: its address.
        shape: logical shape.
        dtype: nrt's name.
        device: DLPack's ``(type, ordinal)``.
        strides: in elements; row-major by default.
    """
    code, bits = _CODES[dtype]
    rank = len(shape)
    dims = (ctypes.c_int64 * max(rank, 1))(*shape)
    steps = (ctypes.c_int64 * max(rank, 1))(*(_dense(shape) if strides is None else strides))
    managed = _Managed(
        tensor=_Tensor(
            data=ptr,
            device=_Device(*device),
            ndim=rank,
            dtype=_DataType(code, bits, 1),
            shape=ctypes.cast(dims, ctypes.POINTER(ctypes.c_int64)),
            strides=ctypes.cast(steps, ctypes.POINTER(ctypes.c_int64)),
            byte_offset=0,
        ),
        context=None,
        deleter=_DELETER,
    )
    address = ctypes.addressof(managed)
    _exported[address] = (managed, dims, steps, owner)
    return _capsule_new(address, _NAME, _DESTRUCTOR)
