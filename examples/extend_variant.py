"""Kernels of one's own for softmax: one for the CPU target, one for GPUs.

python examples/extend_variant.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

import nrt
from nrt.builder import build
from nrt.cpu_kernels import HostCall, HostVariant
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.problem import Problem, Refusal

__all__ = ["NumPySoftmax", "RowSoftmax", "network"]


def refusal(problem: Problem) -> Refusal | None:
    """Both kernels want rows of fp32, one behind the other."""
    x = problem.inputs[0]
    if x.dtype.name != "fp32" or not (x.is_row_major and problem.y.is_row_major):
        return Refusal(f"the input is {x}, expected row-major fp32")
    if problem.op.attributes()["axis"] not in (-1, len(x.shape) - 1):
        return Refusal("the axis is not the last one")
    return None


@nrt.variant("Softmax")
class NumPySoftmax(HostVariant):
    """The CPU target: whole arrays, by NumPy."""

    name = "numpy_softmax"

    def supports(self, problem: Problem) -> Refusal | None:
        return refusal(problem)

    def bind(self, problem: Problem, config: tuple[Any, ...]) -> HostCall:
        def call(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
            y = outputs[0]
            np.subtract(inputs[0], inputs[0].max(-1, keepdims=True), out=y)
            np.exp(y, out=y)
            np.divide(y, y.sum(-1, keepdims=True), out=y)

        return call


def row_softmax(columns: int) -> tuple[Any, Any]:
    """The GPU kernel for rows of ``columns`` elements, a thread per row; and its signature."""

    def kernel(x, y, rows):
        row = cuda.grid(1)
        if row < rows:
            start = row * columns
            largest = x[start]
            for k in range(1, columns):
                largest = max(largest, x[start + k])
            total = types.float32(0)
            for k in range(columns):
                total += math.exp(x[start + k] - largest)
            for k in range(columns):
                y[start + k] = math.exp(x[start + k] - largest) / total

    pointer = types.CPointer(types.float32)
    return kernel, types.void(pointer, pointer, types.int32)


@nrt.variant("Softmax")
class RowSoftmax(Variant):
    """GPUs: the threads per block are its configuration."""

    name = "row_softmax"

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return refusal(problem)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[int]]:
        return [(128,), (32,)]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        (threads,) = config
        columns = problem.y.shape[-1]
        rows = problem.y.size // columns
        kernel = KernelSpec.of(row_softmax, (columns,), threads)
        grid, block = (-(-rows // threads), 1, 1), (threads, 1, 1)
        return Emission((Launch(kernel, grid, block, (In(0), Out(), Scalar(rows, "i32"))),))


def network() -> nrt.Network:
    """A softmax over rows."""
    net = nrt.Network("softmax")
    net.output(net.softmax(net.input("x", (6, 37)), name="softmax"), "y")
    return net


if __name__ == "__main__":
    built = build(network(), target="cpu")
    for candidate in built.choices["softmax"].candidates:
        print(candidate)
    print(built.plan.notes)
