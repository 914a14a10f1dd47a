"""Rates of known GPUs, as their makers' data sheets state them: dense, without sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DATA_SHEETS", "DataSheet"]


@dataclass(frozen=True)
class DataSheet:
    """One product.

    Attributes:
        name: the product's.
        words: of the name that the driver reports, lower case; all must be there.
        arch: compile target.
        bandwidth: bytes per second.
        rates: precision -> operations per second.
    """

    name: str
    words: tuple[str, ...]
    arch: str
    bandwidth: float
    rates: Mapping[str, float]


def _rates(fp32: float, fp16: float, **others: float) -> dict[str, float]:
    """In units of 1e12; bf16 runs as fp16 does."""
    found = {"fp32": fp32, "fp16": fp16, "bf16": fp16, **others}
    return {name: value * 1e12 for name, value in found.items()}


_HOPPER = _rates(67, 989, tf32=495, int8=1979, fp8=1979)

# The first that fits counts: special forms stand before general ones.
DATA_SHEETS: tuple[DataSheet, ...] = (
    DataSheet("NVIDIA H200", ("h200",), "sm_90a", 4.8e12, _HOPPER),
    DataSheet(
        "NVIDIA H100 PCIe", ("h100", "pcie"), "sm_90a", 2.0e12,
        _rates(51, 756, tf32=378, int8=1513, fp8=1513),
    ),
    DataSheet(
        "NVIDIA H100 NVL", ("h100", "nvl"), "sm_90a", 3.9e12,
        _rates(60, 835, tf32=418, int8=1671, fp8=1671),
    ),
    DataSheet("NVIDIA H100 SXM", ("h100",), "sm_90a", 3.35e12, _HOPPER),
    DataSheet(
        "NVIDIA A100 80GB", ("a100", "80gb"), "sm_80", 2.0e12,
        _rates(19.5, 312, tf32=156, int8=624),
    ),
    DataSheet(
        "NVIDIA A100 40GB", ("a100",), "sm_80", 1.555e12, _rates(19.5, 312, tf32=156, int8=624)
    ),
    DataSheet("NVIDIA L4", ("l4",), "sm_89", 0.3e12,
              _rates(30.3, 121, tf32=60, int8=242, fp8=242)),
    DataSheet("NVIDIA T4", ("t4",), "sm_75", 0.32e12, {
        "fp32": 8.1e12, "fp16": 65e12, "int8": 130e12,
    }),
    DataSheet("NVIDIA Jetson AGX Orin", ("orin",), "sm_87", 0.2048e12,
              _rates(5.3, 42.5, tf32=21.2, int8=85)),
)  # fmt: skip
