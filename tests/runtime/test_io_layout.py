"""Bindings in channels-last order: logical shapes, any strides, no copy where none is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.errors import InputError
from nrt.plan import BufferRef, CopyStep, IoSpec, Plan, Target
from nrt.plan_file import plan_from_bytes, plan_to_bytes
from nrt.runtime import DeviceTensor, Engine
from nrt.runtime.arrays import host_array, laid_out, logical_view, memory_view
from nrt.runtime.dlpack import CUDA, export_dlpack

from .plans import bind, layer
from .simulated import SimulatedDevice

SHAPE = (2, 3, 5, 4)
SPEC = IoSpec("x", SHAPE, "fp16", "nhwc")
STEPS = tuple(2 * s for s in SPEC.strides)


def image() -> Any:
    return np.random.default_rng().standard_normal(SHAPE).astype(np.float16)


def last(x: Any) -> Any:
    """``x`` with channels-last strides."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def copy_plan(kind: str = "cpu") -> Plan:
    """``y = x`` as bytes: the runtime alone judges layouts."""
    ref = BufferRef("input", 0, SPEC.nbytes)
    arch = "sm_90a" if kind == "cuda" else "x86_64"
    return Plan(
        "copy", Target(kind, arch), (SPEC,), (replace(SPEC, name="y"),), 0, b"", (), (),
        (CopyStep(ref, BufferRef("output", 0, SPEC.nbytes)),), (layer(),),
    )  # fmt: skip


def engines() -> list[Engine]:
    return [Engine(copy_plan(), bind), Engine(copy_plan("cuda"), device=SimulatedDevice({}, 3))]


def test_the_spec_says_how_memory_lies() -> None:
    assert SPEC.strides == (60, 1, 12, 3)
    assert SPEC.order == (0, 2, 3, 1)
    assert str(SPEC) == "fp16[2, 3, 5, 4]{nhwc}"
    plain = IoSpec("x", SHAPE, "fp16")
    assert (plain.layout, plain.strides, str(plain)) == (
        "row-major",
        (60, 20, 4, 1),
        "fp16[2, 3, 5, 4]",
    )


def test_a_plan_file_keeps_the_layout() -> None:
    plan = copy_plan()
    assert plan_from_bytes(plan_to_bytes(plan)) == plan


def test_views_are_each_others_inverse() -> None:
    x = image()
    memory = memory_view(SPEC, x)
    assert memory.shape == (2, 5, 4, 3)
    assert memory.flags.c_contiguous
    again = logical_view(SPEC, memory.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(again, x)
    assert again.strides == STEPS
    assert laid_out(SPEC, x).strides == STEPS
    np.testing.assert_array_equal(laid_out(SPEC, x), x)


def test_channels_last_memory_is_taken_as_it_is() -> None:
    x = last(image())
    assert np.shares_memory(host_array(SPEC, x), x)
    assert not np.shares_memory(host_array(SPEC, np.ascontiguousarray(x)), x)


@pytest.mark.parametrize("index", [0, 1], ids=["cpu", "cuda"])
def test_any_strides_are_accepted_and_outputs_have_the_layouts(index: int) -> None:
    engine = engines()[index]
    x = image()
    wide = np.zeros((2, 3, 5, 8), np.float16)
    wide[..., ::2] = x
    for given in (
        x,
        last(x),
        wide[..., ::2],
        np.asfortranarray(x),
        x[::-1, ::-1].copy()[::-1, ::-1],
    ):
        y = engine(given)
        assert (y.shape, y.dtype, y.strides) == (SHAPE, np.float16, STEPS)
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("index", [0, 1], ids=["cpu", "cuda"])
def test_enqueued_runs_keep_the_layout(index: int) -> None:
    context = engines()[index].create_context()
    first, second = image(), image()
    context.set_input("x", first)
    pending = context.enqueue()
    context.set_input("x", last(second))
    other = context.enqueue()
    for found, wanted in ((pending.result()["y"], first), (other.result()["y"], second)):
        np.testing.assert_array_equal(found, wanted)
        assert found.strides == STEPS


def test_dlpack_of_host_memory() -> None:
    class Foreign:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    x = image()
    for engine in engines():
        for given in (x, last(x)):
            np.testing.assert_array_equal(engine(Foreign(given)), x)


class OnDevice:
    """Simulated device memory is host memory; only the protocol tells them apart."""

    def __init__(self, array: Any, protocol: str) -> None:
        self.array, self.protocol = array, protocol
        if protocol == "interface":
            self.__cuda_array_interface__ = {
                "shape": array.shape,
                "typestr": array.dtype.str,
                "data": (array.ctypes.data, False),
                "strides": array.strides,
                "version": 3,
            }
        else:
            self.__dlpack_device__ = lambda: (CUDA, 0)

    def __getattr__(self, name: str) -> Any:
        if name == "__dlpack__" and self.protocol == "dlpack":
            return self._export
        raise AttributeError(name)

    def _export(self, **_: Any) -> Any:
        x = self.array
        strides = tuple(s // x.itemsize for s in x.strides)
        return export_dlpack(x, x.ctypes.data, x.shape, "fp16", (CUDA, 0), strides)


@pytest.mark.parametrize("protocol", ["dlpack", "interface"])
def test_device_memory_of_the_layout_is_copied_once(protocol: str) -> None:
    engine = engines()[1]
    x = image()
    given = OnDevice(last(x), protocol)
    np.testing.assert_array_equal(engine(given), x)
    with pytest.raises(
        InputError,
        match=r"input 'x': OnDevice has strides \(60, 20, 4, 1\), expected dense channels-last "
        r"memory; pass x\.contiguous\(memory_format=torch\.channels_last\)",
    ):
        engine(OnDevice(x, protocol))


def test_device_outputs_have_the_layouts_strides() -> None:
    x = image()
    tensor = engines()[1](x, device=True)
    assert isinstance(tensor, DeviceTensor)
    assert (tensor.shape, tensor.strides) == (SHAPE, SPEC.strides)
    assert tensor.__cuda_array_interface__["strides"] == STEPS
    np.testing.assert_array_equal(tensor.numpy(), x)
    assert tensor.numpy().strides == STEPS
    again = engines()[1](tensor)  # through DLPack
    np.testing.assert_array_equal(again, x)


@pytest.mark.parametrize("shape", [(1, 1, 3, 2), (0, 3, 2, 2), (2, 5, 1, 1)])
def test_awkward_images(shape: tuple[int, ...]) -> None:
    spec = IoSpec("x", shape, "fp32", "nhwc")
    x = np.random.default_rng().standard_normal(shape).astype(np.float32)
    found = logical_view(spec, host_array(spec, x).reshape(-1).view(np.uint8))
    assert found.shape == shape
    np.testing.assert_array_equal(found, x)


def test_errors_show_the_layout() -> None:
    with pytest.raises(InputError, match=r"expected fp16\[2, 3, 5, 4\]\{nhwc\}; .*reshape or pad"):
        engines()[0](np.zeros((2, 5, 4, 3), np.float16))
