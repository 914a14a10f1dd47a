"""nrt compiles a trained network into a measured plan of kernels and runs it.

::

    engine = nrt.compile("resnet50.onnx", precision="fp16")
    probabilities = engine(images)
    engine.save("resnet50.nrt")
    engine = nrt.load("resnet50.nrt")

Importing the package needs neither a GPU nor a driver and loads no compiler: names are resolved on
first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrt.errors import (
    BuildError,
    CalibrationError,
    CompileError,
    ContextBusyError,
    DeviceError,
    ExportError,
    ExtensionError,
    GraphError,
    ImportModelError,
    InputError,
    NrtError,
    PassError,
    PlanError,
    PlanTargetError,
    SettingsError,
    ShapeError,
    TuningError,
    UnsupportedOpError,
)

if TYPE_CHECKING:
    import os

    from nrt.calibrator import calibrate
    from nrt.compiled import CompiledEngine, compile
    from nrt.extend import op, pointwise, variant
    from nrt.extensions.registry import registry
    from nrt.extensions.trace import where
    from nrt.frontend import Network, to_onnx
    from nrt.insight.ablate import ablate
    from nrt.insight.debug_precision import debug_precision
    from nrt.ir import Op, TensorType
    from nrt.passes.base import Pass
    from nrt.passes.bind_io import IOFormat
    from nrt.passes.surgery import replace
    from nrt.precision import AccuracyBudget
    from nrt.quantization import Calibration
    from nrt.runtime import Engine

__all__ = [
    "compile",
    "calibrate",
    "load",
    "to_onnx",
    "replace",
    "ablate",
    "debug_precision",
    "Network",
    "Engine",
    "CompiledEngine",
    "IOFormat",
    "op",
    "pointwise",
    "variant",
    "where",
    "registry",
    "Op",
    "Pass",
    "TensorType",
    "Calibration",
    "AccuracyBudget",
    "NrtError",
    "BuildError",
    "CalibrationError",
    "CompileError",
    "ContextBusyError",
    "DeviceError",
    "ExportError",
    "ExtensionError",
    "GraphError",
    "ImportModelError",
    "InputError",
    "PassError",
    "PlanError",
    "PlanTargetError",
    "SettingsError",
    "ShapeError",
    "TuningError",
    "UnsupportedOpError",
    "__version__",
]

__version__ = "0.1.0"

_LAZY = {
    "compile": "nrt.compiled",
    "CompiledEngine": "nrt.compiled",
    "calibrate": "nrt.calibrator",
    "Network": "nrt.frontend",
    "to_onnx": "nrt.frontend",
    "replace": "nrt.passes.surgery",
    "ablate": "nrt.insight.ablate",
    "debug_precision": "nrt.insight.debug_precision",
    "Engine": "nrt.runtime",
    "IOFormat": "nrt.passes.bind_io",
    "op": "nrt.extend",
    "pointwise": "nrt.extend",
    "variant": "nrt.extend",
    "where": "nrt.extensions.trace",
    "registry": "nrt.extensions.registry",
    "Op": "nrt.ir",
    "Pass": "nrt.passes.base",
    "TensorType": "nrt.ir",
    "Calibration": "nrt.quantization",
    "AccuracyBudget": "nrt.precision",
}


def load(path: str | os.PathLike[str]) -> Engine:
    """Load a plan that `Engine.save` or ``nrt build`` wrote.

    A CUDA plan needs only `nrt.runtime`: Numba, ONNX and networkx may be missing. A CPU plan names
    host kernels, which `nrt.cpu_kernels` compiles.

    Raises:
        PlanError: the file is truncated, edited, or from another version of nrt.
        PlanTargetError: it was built for another device.
        DeviceError: it needs a GPU and there is none.
    """
    from nrt.plan_file import read_plan
    from nrt.runtime import Engine

    plan = read_plan(path)
    if plan.target.kind == "cpu":
        from nrt.cpu_kernels import bind

        return Engine(plan, host_bind=bind)
    return Engine(plan)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'nrt' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
