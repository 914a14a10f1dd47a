"""What every kernel family's tests do: compile offline, and compare on a GPU with the reference."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nrt.cuda_kernels.compiler import Cubin, compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import DType
from nrt.ir.op import Op
from nrt.problem import Problem, TensorSpec
from nrt.trial import random_inputs, relative_error

__all__ = ["ELSEWHERE", "assert_right", "compiled", "problem"]


def problem(
    op: Op,
    shapes: Sequence[tuple[int, ...]],
    dtype: DType,
    *,
    order: tuple[int, ...] | None = None,
    dtypes: dict[int, DType] | None = None,
    constants: Sequence[int] = (),
    leading: int = 0,
) -> Problem:
    """A problem whose data tensors lie in ``order``.

    Args:
        op: the operation. shapes: of the inputs. dtype: of the inputs, but for those in ``dtypes``.
        order: memory order of inputs that are no constants and have as many dimensions, and of
        outputs. constants: slots known at build time (row-major). leading: makes the output a slice
        of a buffer with this many more elements innermost.
    """
    specs = []
    for slot, shape in enumerate(shapes):
        own = order if order and len(order) == len(shape) and slot not in constants else None
        specs.append(TensorSpec.dense(shape, (dtypes or {}).get(slot, dtype), own))
    outputs = []
    for kind in op.infer(*(s.type for s in specs)):
        memory = order if order and len(order) == len(kind.shape) else None
        spec = TensorSpec.dense(kind.shape, kind.dtype, memory)
        if leading:
            inner = (memory or tuple(range(len(kind.shape))))[-1]
            wide = list(kind.shape)
            wide[inner] += leading
            spec = TensorSpec(
                kind.shape, kind.dtype, TensorSpec.dense(tuple(wide), kind.dtype, memory).strides
            )
        outputs.append(spec)
    flags = tuple(slot in constants for slot in range(len(shapes)))
    return Problem(op, tuple(specs), tuple(outputs), flags)


ELSEWHERE = "elsewhere"


def compiled(variant: Variant, task: Problem, arch: str, config: Any = None) -> list[Cubin]:
    """The cubins of ``variant`` for ``task``, compiled now for ``arch``.

    `ELSEWHERE` is one of the architectures that have what sm_80 has, another one on every call.
    """
    if arch == ELSEWHERE:
        arch = secrets.choice(("sm_87", "sm_90a"))
        print(f"compiled for {arch}")  # noqa: T201
    device = ARCHS[arch]
    assert variant.supports(task, device) is None
    config = variant.configs(task, device)[0] if config is None else config
    return [
        compile_kernel(launch.kernel, device)
        for launch in variant.emit(task, config, device).launches
    ]


def assert_right(
    runner: Any,
    variant: Variant,
    task: Problem,
    limit: dict[str, float],
    configs: Sequence[Any] | None = None,
) -> None:
    """Configurations of ``variant``, all if not given, give the float64 reference's result.

    On fresh data.
    """
    assert variant.supports(task, runner.device) is None
    seed = zlib.crc32(f"{variant.name} {task}".encode())
    inputs = random_inputs(task, np.random.default_rng(seed))
    exact = [
        a.astype(np.float64) if s.dtype.is_float else a
        for a, s in zip(inputs, task.inputs, strict=True)
    ]
    expected = task.op.reference(*exact)
    configs = variant.configs(task, runner.device) if configs is None else configs
    assert configs
    for config in configs:
        outputs = runner.run(variant, task, config, inputs)
        for out, ref, spec in zip(outputs, expected, task.outputs, strict=True):
            error = relative_error(out, ref)
            assert error <= limit.get(spec.dtype.name, 0.0), (
                f"{variant.name}{config} on {task}: {error:.2e}"
            )
