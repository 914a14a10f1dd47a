"""Reports, errors, statistics and the examination of a machine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from nrt.dtypes import dtype_from_name
from nrt.errors import DeviceError, ImportModelError, InputError
from nrt.insight import environment, reference
from nrt.insight.compare import compare_outputs, default_tolerance, relative_error
from nrt.insight.inputs import check_inputs, random_inputs
from nrt.insight.latency import summarize
from nrt.insight.report import plan_report
from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    Layer,
    Plan,
    SetStep,
    Target,
)


def test_relative_error() -> None:
    rng = np.random.default_rng()
    ref = rng.standard_normal((7, 13))
    assert relative_error(ref, ref) == 0
    assert relative_error(ref * 1.25, ref) == pytest.approx(0.25)
    half = ref.astype(np.float16)
    assert relative_error(half, half.astype(np.float64)) == 0
    small = ref.astype(ml_dtypes.bfloat16)
    assert 1e-4 < relative_error(small, ref) < 1e-2


def test_relative_error_where_there_is_no_scale() -> None:
    zeros = np.zeros(5)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(np.full(5, 1e-30), zeros) == math.inf
    assert relative_error(np.empty((0, 3)), np.empty((0, 3))) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_never_pass(bad: float) -> None:
    good, broken = np.ones(4), np.array([1, bad, 1, 1])
    assert relative_error(broken, good) == math.inf
    assert relative_error(broken, broken) == math.inf
    (out,) = compare_outputs({"y": broken}, {"y": good}, 1e9)
    assert not out.passed
    assert out.reason == "the output holds 1 NaN or infinite value(s)"
    (both,) = compare_outputs({"y": broken}, {"y": broken}, 1e9)
    assert both.reason == "the reference holds 1 NaN or infinite value(s)"


def test_compare_integers_and_empty_outputs() -> None:
    ints = np.array([3, 5, -7])
    (same,) = compare_outputs({"i": ints}, {"i": ints}, 0.0)
    assert same.passed
    (empty,) = compare_outputs({"e": np.empty((0, 2))}, {"e": np.empty((0, 2))}, 0.0)
    assert empty.passed
    (other,) = compare_outputs({"i": ints + 1}, {"i": ints}, 1e-3)
    assert (other.passed, other.max_error) == (False, 1.0)


def test_compare_a_missing_output() -> None:
    with pytest.raises(InputError, match=r"output 'y' of the reference is missing; found z"):
        compare_outputs({"z": np.ones(1)}, {"y": np.ones(1)}, 1.0)


def test_default_tolerance_is_the_coarsest() -> None:
    assert default_tolerance(()) == 1e-4
    assert default_tolerance(("fp32",)) == 1e-4
    assert default_tolerance(("fp16", "fp32")) == 1e-2
    assert default_tolerance(("int64",)) == 1e-4


def test_random_inputs() -> None:
    specs = [
        IoSpec("x", (3, 5), "fp16"),
        IoSpec("ids", (64,), "int64"),
        IoSpec("mask", (64,), "bool"),
        IoSpec("scalar", (), "bf16"),
    ]
    arrays = random_inputs(specs, seed=3)
    check_inputs(specs, arrays)
    for spec in specs:
        assert arrays[spec.name].dtype == dtype_from_name(spec.dtype).numpy
    assert set(arrays["ids"].tolist()) == {0, 1}
    np.testing.assert_array_equal(random_inputs(specs, seed=3)["x"], arrays["x"])
    assert (random_inputs(specs, seed=4)["x"] != arrays["x"]).any()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "input 'y' is unknown; expected 'x'"),
        ({}, "input 'x' is missing; give it with --input x=FILE.npy"),
        ({"x": np.float32(1)}, "input 'x' has shape (), expected 2x3"),
        ({"x": np.ones((2, 3), np.int32)}, "input 'x' has dtype int32, expected fp32"),
    ],
)
def test_inputs_that_do_not_fit(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        check_inputs([IoSpec("x", (2, 3), "fp32")], arrays)


def test_summary() -> None:
    times = np.random.default_rng(5).permutation(np.arange(1, 102) / 1000)
    s = summarize(times)
    assert (s.count, s.min, s.max) == (101, 0.001, 0.101)
    assert (s.mean, s.median) == (pytest.approx(0.051), pytest.approx(0.051))
    assert (s.p90, s.p95, s.p99) == tuple(pytest.approx(v) for v in (0.091, 0.096, 0.1))
    assert summarize([0.5]).p99 == 0.5
    with pytest.raises(InputError, match="no run was measured"):
        summarize([])


def test_report_of_a_cuda_plan() -> None:
    arena = BufferRef("arena", 0, 64)
    layer = Layer(
        "mm", "MatMul", ("a", "b"), (), ("fp16[8]",), "fp16", "wgmma", "128x64", 2e-6, 7, 9
    )
    plan = Plan(
        name="net",
        target=Target("cuda", "sm_90a", "H200"),
        inputs=(),
        outputs=(),
        arena_bytes=64,
        weights=b"1234",
        cubins=(b"",),
        kernels=(KernelRef(0, "k"),),
        steps=(
            SetStep(arena, 0, 0),
            ForkStep(0, (1,)),
            LaunchStep(0, (4, 2, 1), (128, 1, 1), (arena,), 1024, stream=1),
            JoinStep(0, (1,)),
            CopyStep(arena, BufferRef("output", 0, 64)),
        ),
        layers=(layer,),
        streams=2,
        tolerance=1e-3,
        notes={"programmatic launch": "off, as asked"},
    )
    report = plan_report(plan)
    assert report["notes"] == {"programmatic launch": "off, as asked"}
    assert report["target"] == {"kind": "cuda", "arch": "sm_90a", "device": "H200"}
    assert (report["weights_bytes"], report["streams"], report["tolerance"]) == (4, 2, 1e-3)
    entries = report["layers"]
    assert [e["kind"] for e in entries] == ["set", "kernel", "copy"]
    assert [(e["part"], e["parts"]) for e in entries] == [(1, 3), (2, 3), (3, 3)]
    assert [e["flops"] for e in entries] == [7, None, None]
    assert entries[1]["launch"] == {
        "kernel": "k",
        "grid": [4, 2, 1],
        "block": [128, 1, 1],
        "cluster": [1, 1, 1],
        "shared_bytes": 1024,
        "stream": 1,
        "programmatic": False,
    }
    assert entries[2]["launch"] == {"bytes": 64, "stream": 0}


def test_a_model_that_the_reference_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\x08\x07")
    with pytest.raises(ImportModelError, match=re.escape(f"ONNX Runtime cannot run {path}")):
        reference.run_reference(str(path), {}, ["y"])


def test_the_fallback_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Tanh", ["x"], ["y"])],
        "t",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "t.onnx")
    x = np.random.default_rng().standard_normal(5).astype(np.float32)
    for installed, name in ((True, "onnxruntime "), (False, "onnx.reference ")):
        if not installed:
            monkeypatch.setattr(reference, "find_spec", lambda _: None)
        who, outputs = reference.run_reference(str(tmp_path / "t.onnx"), {"x": x}, ["y"])
        assert who.startswith(name)
        np.testing.assert_allclose(outputs["y"], np.tanh(x), rtol=1e-5)


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version", _raise(PackageNotFoundError("x")))
    check = environment._library("onnx", "onnx", "reading ONNX files")
    assert (check.ok, check.needed, check.mend) == (False, True, "pip install onnx")
    assert check.found == "not installed; needed for reading ONNX files"
    optional = environment._library("onnxruntime", "onnxruntime", "")
    assert (optional.needed, optional.found) == (False, "not installed; optional")


def test_a_library_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "import_module", _raise(ImportError("needs\nNumPy 2.4")))
    check = environment._library("numba", "numba", "kernels")
    assert not check.ok
    assert check.found.endswith("does not import: needs NumPy 2.4")
    assert check.mend == "pip install numba --force-reinstall"


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nrt.runtime.driver.bindings", _raise(DeviceError("no libcuda")))
    check, major = environment._driver()
    assert (check.ok, check.found, major) == (False, "no libcuda", 13)
    assert "install NVIDIA's driver" in check.mend


def test_a_toolkit_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuda.pathfinder.load_nvidia_dynamic_lib", _raise(RuntimeError("no file")))
    for major, extra in ((11, "[cu12]"), (12, "[cu12]"), (13, "[cu13]"), (14, "[cu13]")):
        check = environment._toolkit("nvvm", "NVVM", major)
        assert (check.ok, check.found) == (False, "not found: no file")
        assert extra in check.mend


def test_a_cpu_target_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_run_tiny", _raise(ImportError("no numba")))
    check = environment._cpu_target()
    assert (check.ok, check.found) == (False, "no numba")
    assert check.mend
    monkeypatch.setattr(environment, "_run_tiny", lambda x: x)
    assert environment._cpu_target().found == "a ReLU gave wrong values"


def test_what_is_usable_follows_from_the_checks() -> None:
    check = environment.Check
    good = [
        check("a", True, "1"),
        check("d", True, "1", group="cuda"),
        check("c", True, "", group="cpu"),
    ]
    assert environment.Environment(tuple(good)).cuda_usable
    optional = check("ort", False, "", "x", needed=False)
    assert environment.Environment((*good, optional)).cuda_usable
    broken = environment.Environment((*good, check("gpu", False, "", "x", "cuda")))
    assert (broken.cuda_usable, broken.cpu_works) == (False, True)
    dead = environment.Environment((*good, check("cpu", False, "", "x", "cpu")))
    assert (dead.cuda_usable, dead.cpu_works) == (False, False)


class FakeDriver:
    """The few calls of the CUDA driver that the examination makes; each returns (status, value)."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
    )

    def __init__(self, version: int, *gpus: tuple[str, int, int]) -> None:
        self.version, self.gpus = version, gpus

    def cuInit(self, flags: int) -> tuple[int]:  # noqa: N802
        return (flags,)

    def cuDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.version

    def cuDeviceGetCount(self) -> tuple[int, int]:  # noqa: N802
        return 0, len(self.gpus)

    def cuDeviceGet(self, index: int) -> tuple[int, int]:  # noqa: N802
        return 0, index

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, self.gpus[device][0].encode().ljust(length, b"\0")

    def cuDeviceGetAttribute(self, which: int, device: int) -> tuple[int, int]:  # noqa: N802
        return 0, self.gpus[device][1 + which]

    def cuDeviceTotalMem(self, device: int) -> tuple[int, int]:  # noqa: N802
        return 0, (device + 1) << 30


def _with_driver(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> None:
    monkeypatch.setattr("nrt.runtime.driver.bindings", lambda: driver)


def test_a_driver_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_driver(monkeypatch, FakeDriver(13010, ("NVIDIA H200", 9, 0), ("Tesla P4", 6, 1)))
    check, major = environment._driver()
    assert (check.ok, check.found, major) == (True, "CUDA 13.1", 13)
    first, second = environment._gpus()
    assert first.found == "NVIDIA H200, compute capability 9.0, 1.0 GiB"
    assert (first.ok, first.needed, first.mend) == (True, True, "")
    assert (second.ok, second.needed) == (False, False)
    assert second.mend == "nrt's kernels need compute capability 7.5 or newer"


def test_a_driver_that_is_too_old_or_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_driver(monkeypatch, FakeDriver(11080))
    check, _ = environment._driver()
    assert (check.ok, check.found) == (False, "CUDA 11.8")
    assert check.mend == "update NVIDIA's driver to one for CUDA 12 or newer"
    (gpu,) = environment._gpus()
    assert (gpu.ok, gpu.found) == (False, "the driver shows none")
    assert "CUDA_VISIBLE_DEVICES" in gpu.mend
