"""What this machine has and lacks: libraries, driver, GPU, CUDA toolkit, a working CPU target.

Each check is independent of the others and names the command that mends what it finds missing.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from nrt.errors import DeviceError, NrtError

__all__ = ["Check", "Environment", "examine"]

Array = np.ndarray[Any, np.dtype[Any]]

_LIBRARIES = (
    # distribution, module, what it is needed for; empty: only extras need it
    ("numpy", "numpy", "everything"),
    ("ml_dtypes", "ml_dtypes", "everything"),
    ("msgpack", "msgpack", "plans"),
    ("networkx", "networkx", "compiling"),
    ("onnx", "onnx", "reading ONNX files"),
    ("numba", "numba", "kernels"),
    ("numba-cuda", "numba_cuda", "kernels of the CUDA target"),
    ("cuda-core", "cuda.core", "running on a GPU"),
    ("rich", "rich", "this command"),
    ("onnxruntime", "onnxruntime", ""),
)

_TOOLKIT = (("nvvm", "NVVM"), ("nvJitLink", "nvJitLink"))
_OLDEST_CC = (7, 5)
_TOOLKIT_COMMAND = {
    12: "pip install 'numba-cuda[cu12]'",
    13: "pip install 'numba-cuda[cu13]' 'cuda-toolkit==13.0.*'",
}
_MEND_CPU = (
    "mend what is missing above; if nothing is, reinstall: pip install --force-reinstall numba"
)


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked for.
        ok: whether it is there and works.
        found: version, product or the reason why not.
        mend: the command or the step that mends it; empty when it is fine.
        group: ``library``, ``cuda`` or ``cpu``.
        needed: whether its group fails without it.
    """

    name: str
    ok: bool
    found: str
    mend: str = ""
    group: str = "library"
    needed: bool = True


@dataclass(frozen=True)
class Environment:
    """All findings."""

    checks: tuple[Check, ...]

    @property
    def cpu_works(self) -> bool:
        """Whether models compile and run on the CPU target."""
        return all(c.ok for c in self.checks if c.group == "cpu")

    @property
    def cuda_usable(self) -> bool:
        """Whether models compile for and run on a GPU of this machine."""
        return self.cpu_works and all(
            c.ok for c in self.checks if c.needed and c.group in ("cuda", "library")
        )


def examine() -> Environment:
    """Run every check. The one of the CPU target compiles a kernel: it takes a few seconds."""
    libraries = [_library(*entry) for entry in _LIBRARIES]
    driver, major = _driver()
    return Environment(
        (
            Check("Python", True, f"{platform.python_version()} ({platform.machine()})"),
            *libraries,
            driver,
            *(_gpus() if driver.ok else ()),
            *(_toolkit(library, name, major) for library, name in _TOOLKIT),
            _cpu_target(),
        )
    )


def _library(distribution: str, module: str, needed_for: str) -> Check:
    mend = f"pip install {distribution}"
    try:
        found = version(distribution)
    except PackageNotFoundError:
        what = (
            f"not installed; needed for {needed_for}" if needed_for else "not installed; optional"
        )
        return Check(distribution, False, what, mend, needed=bool(needed_for))
    try:
        import_module(module)
    except (ImportError, RuntimeError) as error:
        what = f"{found} does not import: {_one_line(error)}"
        return Check(
            distribution, False, what, f"{mend} --force-reinstall", needed=bool(needed_for)
        )
    return Check(distribution, True, found, needed=bool(needed_for))


def _driver() -> tuple[Check, int]:
    """The check of the driver, and the major version of CUDA that it speaks (13 without one)."""
    from nrt.runtime.driver import bindings, check

    try:
        driver = bindings()
        check("cuInit", driver.cuInit(0))
        number = int(check("cuDriverGetVersion", driver.cuDriverGetVersion()))
    except (DeviceError, RuntimeError) as error:
        mend = (
            "install NVIDIA's driver (https://www.nvidia.com/drivers); in a container, start it "
            "with --gpus all. The CPU target needs none"
        )
        return Check("driver", False, _one_line(error), mend, "cuda"), 13
    major = number // 1000
    found = f"CUDA {major}.{number % 1000 // 10}"
    if major < min(_TOOLKIT_COMMAND):
        mend = f"update NVIDIA's driver to one for CUDA {min(_TOOLKIT_COMMAND)} or newer"
        return Check("driver", False, found, mend, "cuda"), major
    return Check("driver", True, found, "", "cuda"), major


def _gpus() -> Sequence[Check]:
    from nrt.runtime.driver import bindings, check

    driver = bindings()
    attribute = driver.CUdevice_attribute
    try:
        count = int(check("cuDeviceGetCount", driver.cuDeviceGetCount()))
        if count == 0:
            mend = "make one visible: CUDA_VISIBLE_DEVICES may hide it"
            return (Check("GPU", False, "the driver shows none", mend, "cuda"),)
        checks = []
        for index in range(count):
            device = check("cuDeviceGet", driver.cuDeviceGet(index))
            raw = check("cuDeviceGetName", driver.cuDeviceGetName(128, device))
            name = raw.split(b"\0")[0].decode(errors="replace")
            major, minor = (
                int(check("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(a, device)))
                for a in (
                    attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                    attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                )
            )
            memory = int(check("cuDeviceTotalMem", driver.cuDeviceTotalMem(device)))
            ok = (major, minor) >= _OLDEST_CC
            found = f"{name}, compute capability {major}.{minor}, {memory / 2**30:.1f} GiB"
            mend = "" if ok else "nrt's kernels need compute capability 7.5 or newer"
            # The first one decides: plans are built for and run on device 0.
            checks.append(Check(f"GPU {index}", ok, found, mend, "cuda", needed=index == 0))
    except DeviceError as error:
        return (Check("GPU", False, _one_line(error), "restart the driver or the machine", "cuda"),)
    return checks


def _toolkit(library: str, name: str, major: int) -> Check:
    mend = _TOOLKIT_COMMAND[min(max(major, 12), 13)]
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib(library).abs_path
    except (ImportError, RuntimeError) as error:
        return Check(name, False, f"not found: {_one_line(error)}", mend, "cuda")
    return Check(name, True, str(path), "", "cuda")


def _cpu_target() -> Check:
    """Compile and run a network of one layer, against NumPy."""
    x = np.linspace(-2, 2, 35, dtype=np.float32).reshape(5, 7)
    try:
        y = _run_tiny(x)
    except (NrtError, ImportError) as error:
        return Check("CPU target", False, _one_line(error), _MEND_CPU, "cpu")
    if not np.array_equal(y, np.maximum(x, 0)):
        return Check("CPU target", False, "a ReLU gave wrong values", _MEND_CPU, "cpu")
    return Check("CPU target", True, "compiled and ran a network of one layer", "", "cpu")


def _run_tiny(x: Array) -> Array:
    from nrt.builder import build
    from nrt.cpu_kernels import bind
    from nrt.frontend import Network
    from nrt.runtime import Engine

    net = Network("doctor")
    net.output(net.relu(net.input("x", x.shape)), "y")
    engine = Engine(build(net, target="cpu", opt_level=0).plan, bind)
    return np.asarray(engine.run({"x": x})["y"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
