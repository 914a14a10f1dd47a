"""Every error that nrt raises on purpose.

::

    NrtError
    ├── GraphError               the graph breaks a rule of the IR
    │   └── ShapeError           shapes or dtypes of an op's inputs do not fit together
    ├── ImportModelError         a model file cannot be read
    │   └── UnsupportedOpError   it can, but holds nodes that nrt does not know: all are listed
    ├── ExportError              a graph cannot be written as ONNX: every reason is listed; or a
    │                            report in a form whose library is missing
    ├── ExtensionError           an op, function, kernel or plug-in of the user's is not sound
    ├── PassError                a pass broke the graph; names the pass and those before it
    ├── BuildError               no kernel, an impossible option, a wrong precision set
    │   ├── CompileError         a kernel did not compile
    │   └── TuningError          a kernel gave a wrong result
    ├── CalibrationError         data, cache or ranges of a quantization do not fit
    ├── PlanError                a plan file is truncated, edited, or from another version
    │   └── PlanTargetError      the plan is sound but for another device
    ├── InputError               wrong name, shape or dtype of an input at run time
    ├── ContextBusyError         two threads used one execution context at once
    ├── DeviceError              no driver, no GPU, or a CUDA call failed
    └── SettingsError            an NRT_* environment variable cannot be read

A message says what was found, what was expected, and the way out.
"""

from __future__ import annotations

__all__ = [
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
    "NrtError",
    "PassError",
    "PlanError",
    "PlanTargetError",
    "SettingsError",
    "ShapeError",
    "TuningError",
    "UnsupportedOpError",
]


class NrtError(Exception):
    """Base of all errors that nrt raises on purpose."""


class GraphError(NrtError):
    """The graph breaks a rule of the IR."""


class ShapeError(GraphError):
    """Shapes or dtypes of an op's inputs do not fit together."""


class ImportModelError(NrtError):
    """A model file cannot be read."""


class UnsupportedOpError(ImportModelError):
    """The model holds nodes that nrt does not know.

    Attributes:
        nodes: one ``(name, op, domain, opset)`` per unsupported node.
    """

    def __init__(self, nodes: list[tuple[str, str, str, int]], detail: str = "") -> None:
        self.nodes = nodes
        lines = [
            f"  node {name or '(unnamed)'}: op {op}, domain {domain or 'ai.onnx'}, opset {opset}"
            for name, op, domain, opset in nodes
        ]
        super().__init__(
            f"the model holds {len(nodes)} unsupported node(s):\n"
            + "\n".join(lines)
            + (f"\n{detail}" if detail else "")
            + "\nRegister them (nrt.op, nrt.pointwise), replace them in the exporter, or cut the "
            "model before them."
        )


class ExportError(NrtError):
    """A graph cannot be written as ONNX, or a report in the form that was asked for."""


class ExtensionError(NrtError):
    """An op, a pointwise function, a variant or a plug-in of the user's is not as it must be."""


class PassError(NrtError):
    """A pass raised or left a graph that does not verify."""


class BuildError(NrtError):
    """The model cannot be built as asked."""


class CalibrationError(NrtError):
    """Data, cache or ranges of a quantization do not fit."""


class CompileError(BuildError):
    """A kernel did not compile."""


class TuningError(BuildError):
    """A kernel gave a wrong result, or no candidate is left."""


class PlanError(NrtError):
    """A plan file is truncated, edited, or from another version."""


class PlanTargetError(PlanError):
    """The plan is sound but was built for another device."""


class InputError(NrtError):
    """Wrong name, shape or dtype of an input at run time."""


class ContextBusyError(NrtError):
    """Two threads used one execution context at once."""


class DeviceError(NrtError):
    """No driver, no GPU, or a CUDA call failed."""


class SettingsError(NrtError):
    """An ``NRT_*`` environment variable cannot be read."""
