"""What the CUDA layer judges before it asks the driver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.errors import DeviceError
from nrt.runtime.cuda import device_count, open_device
from nrt.runtime.driver import check, translated
from nrt.runtime.info import DeviceInfo
from nrt.runtime.launch import Kernel, check_args, launch_config, native, permit


def kernel(*sizes: int) -> Kernel:
    return Kernel("f", None, sizes)


def test_arguments_that_fit() -> None:
    check_args(
        "launch", kernel(8, 8, 4, 4, 8, 4), [1, 0, (1, "u32"), (1.0, "f32"), (1, "i64"), (1, "i32")]
    )
    check_args("launch", Kernel("f", None, None), [1, (2, "u64")])


def test_arguments_that_do_not() -> None:
    with pytest.raises(
        DeviceError,
        match=r"launch of 'f': 2 arguments of \(8, 4\) bytes given, .* takes 1 of \(8,\) bytes",
    ):
        check_args("launch of 'f'", kernel(8), [1, (1, "u32")])
    with pytest.raises(
        DeviceError, match="argument type 'f64', expected one of u32, i32, u64, i64"
    ):
        check_args("launch", kernel(8), [(1.0, "f64")])


@pytest.mark.parametrize(
    ("ctype", "numpy"),
    [
        ("u32", np.uint32),
        ("i32", np.int32),
        ("u64", np.uint64),
        ("i64", np.int64),
        ("f32", np.float32),
    ],
)
def test_scalars_have_their_own_size(ctype: str, numpy: type) -> None:
    value = native((3, ctype))
    assert type(value) is numpy
    assert value == 3
    assert native(1 << 40) == 1 << 40


def attributes(config: Any) -> list[str]:
    """Names of the attributes that cuda.core hands to the driver with a launch."""
    from cuda.core._launch_config import _to_native_launch_config

    return [item.id.name for item in _to_native_launch_config(config).attrs or []]


def test_a_programmatic_launch_has_the_attribute() -> None:
    grid, block = (4, 1, 1), (64, 1, 1)
    name = "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"
    assert attributes(launch_config("launch", grid, block, 0, None)) == []
    config = launch_config("launch", grid, block, 512, None, True)
    assert attributes(config) == [name]
    # Made with a cluster, a configuration asks the device; given one later, it does not.
    config.cluster = (2, 1, 1)
    assert sorted(attributes(config)) == ["CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION", name]


def test_older_devices_have_no_programmatic_launch() -> None:
    orin = DeviceInfo(0, "Orin", "sm_87", (8, 7), 16, 4 << 20, 163 << 10, 164 << 10, 1 << 30, "12")
    with pytest.raises(
        DeviceError, match=r"'f': sm_87 has no programmatic dependent launch, expected .* 9\.0 or"
    ):
        permit(kernel(8), orin, 0, None, True)


def test_no_device() -> None:
    if device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match=r"opening the CUDA driver failed: .*run `nrt doctor`"):
        open_device()


def test_what_the_library_raises_is_translated() -> None:
    with (
        pytest.raises(DeviceError, match="launch failed: ValueError: grid is odd"),
        translated("launch"),
    ):
        raise ValueError("grid is\n odd")
    with pytest.raises(KeyError), translated("launch"):
        raise KeyError("not the library's")


def test_results_of_driver_calls() -> None:
    assert check("call", (0,)) is None
    assert check("call", (0, 7)) == 7
    assert check("call", (0, 7, 8)) == (7, 8)
