from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from nrt.errors import InputError
from nrt.runtime.dlpack import (
    CPU,
    _exported,
    export_dlpack,
    view_cuda_array,
    view_dlpack,
)


class Owner:
    """Host memory as a producer."""

    def __init__(self, array: Any, dtype: str) -> None:
        self.array = array
        self.dtype = dtype

    def __dlpack__(self, **_: Any) -> Any:
        return export_dlpack(self, self.array.ctypes.data, self.array.shape, self.dtype, (CPU, 0))

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU, 0)


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "float64", "int8", "uint16", "int64", "bool"]
)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (2, 1, 7)])
def test_numpy_takes_an_export(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng().standard_normal(shape) * 10).astype(dtype)
    name = dtype.replace("float", "fp")
    taken = np.from_dlpack(Owner(array, name))
    assert taken.dtype == array.dtype
    assert taken.shape == shape
    np.testing.assert_array_equal(taken, array)


def test_the_owner_lives_as_long_as_the_consumer() -> None:
    before = len(_exported)
    owner = Owner(np.arange(6.0), "fp64")
    alive = weakref.ref(owner)
    taken = np.from_dlpack(owner)
    del owner
    gc.collect()
    assert alive() is not None
    assert taken.tolist() == [0, 1, 2, 3, 4, 5]
    del taken
    gc.collect()
    assert alive() is None
    assert len(_exported) == before


def test_an_unused_capsule_frees_its_owner() -> None:
    before = len(_exported)
    owner = Owner(np.arange(6.0), "fp64")
    alive = weakref.ref(owner)
    capsule = owner.__dlpack__()
    del owner
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None
    assert len(_exported) == before


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.arange(12, dtype=np.float16).reshape(3, 4).T,
        np.arange(24, dtype=np.float32).reshape(4, 6)[1:, ::2],
        np.zeros((2, 0, 3), np.uint8),
        np.array(2.5),
    ],
)
def test_reading_numpys_capsules(array: Any) -> None:
    view = view_dlpack("x", array, None)
    assert view.shape == array.shape
    assert not view.on_device
    if array.size > 1:
        assert view.strides == tuple(s // array.itemsize for s in array.strides)
        assert view.contiguous == array.flags.c_contiguous
    copied = view.to_numpy()
    np.testing.assert_array_equal(copied, array)
    assert not np.shares_memory(copied, array)


def test_bf16_through_a_capsule() -> None:
    import ml_dtypes

    array = np.array([1.5, -2, 0.125], ml_dtypes.bfloat16)
    view = view_dlpack("x", Owner(array, "bf16"), None)
    assert view.dtype == "bf16"
    np.testing.assert_array_equal(view.to_numpy(), array)


def test_refusals() -> None:
    class Elsewhere(Owner):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (8, 0)  # Metal

    class Refuses(Owner):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("conjugate bit is set")

    array = np.zeros(3)
    with pytest.raises(InputError, match="input 'x': lies on DLPack device type 8, expected host"):
        view_dlpack("x", Elsewhere(array, "fp64"), None)
    with pytest.raises(InputError, match=r"input 'x': Refuses.__dlpack__: conjugate bit"):
        view_dlpack("x", Refuses(array, "fp64"), None)
    with pytest.raises(InputError, match=r"DLPack element type \(5, 128\) x1 is unknown; expected"):
        view_dlpack("x", np.zeros(3, np.complex128), None)
    with pytest.raises(InputError, match=r"strides \(-1,\) run backwards; pass a copy"):
        view_dlpack("x", np.zeros(3)[::-1], None)


class Cuda:
    def __init__(self, **fields: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3),
            "typestr": "<f2",
            "data": (4096, False),
            "version": 3,
            **fields,
        }


def test_cuda_array_interface() -> None:
    view, stream = view_cuda_array("x", Cuda(stream=7), 1)
    assert (view.ptr, view.shape, view.strides, view.dtype) == (4096, (2, 3), (3, 1), "fp16")
    assert (view.on_device, view.device, stream) == (True, 1, 7)
    view, stream = view_cuda_array("x", Cuda(strides=(2, 4)), 0)
    assert (view.strides, view.contiguous, stream) == ((1, 2), False, None)
    with pytest.raises(InputError, match="input 'x': element type <c8 is unknown"):
        view_cuda_array("x", Cuda(typestr="<c8"), 0)
    with pytest.raises(InputError, match="run backwards"):
        view_cuda_array("x", Cuda(strides=(-6, 2)), 0)


def test_capsules_are_what_the_standard_says() -> None:
    owner = Owner(np.arange(6, dtype=np.int16).reshape(2, 3), "int16")
    capsule = owner.__dlpack__()
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    assert get_name(capsule) == b"dltensor"
