"""Load a plan and run it. Needs NumPy and msgpack, and for CUDA plans cuda.core; nothing else."""

from __future__ import annotations

from nrt.runtime.context import Context, Pending
from nrt.runtime.device_tensor import DeviceTensor
from nrt.runtime.engine import Engine, load

__all__ = ["Context", "DeviceTensor", "Engine", "Pending", "load"]
