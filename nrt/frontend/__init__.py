"""How a model comes in, from an ONNX file or layer by layer in Python, and goes out as ONNX.

The entries are loaded on first use, so that building a network in Python does not import onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrt.frontend.network import Network
    from nrt.frontend.onnx_export import to_onnx
    from nrt.frontend.onnx_model import import_model

__all__ = ["Network", "import_model", "to_onnx"]


def __getattr__(name: str) -> Any:
    if name == "Network":
        from nrt.frontend.network import Network

        return Network
    if name == "import_model":
        from nrt.frontend.onnx_model import import_model

        return import_model
    if name == "to_onnx":
        from nrt.frontend.onnx_export import to_onnx

        return to_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
