"""The tuner's bench on a GPU, or for one that is not here (heuristic only)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import numpy as np

from nrt.cuda_kernels.compare_kernels import compare_spec
from nrt.cuda_kernels.compile_pool import CompilePool
from nrt.cuda_kernels.compiler import Cubin, kernel_key
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.registry import variants_for
from nrt.cuda_kernels.variant import KernelSpec, Variant
from nrt.cuda_runner import CudaRunner, Operands
from nrt.device_compare import on_device
from nrt.dtypes import FP8E4M3
from nrt.errors import CompileError, TuningError
from nrt.extensions.registry import registry
from nrt.extensions.user_code import user_code
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.timing_cache import Timing
from nrt.trial import BYTES_TOLERANCE, random_inputs, rounds_to_bytes

__all__ = ["CudaBench", "tolerance"]

# Relative error against the reference kernel on the same stored inputs, per layer.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "fp64": 1e-10, "fp8e4m3": 2e-2}

# Rounding to 10 bits of mantissa: a sum of products of two such is off by some 3e-4.
TF32_TOLERANCE = 1e-3

# Tensor cores keep some 14 bits of a sum of fp8 (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024,
# section 3.3.2), and less than that of one whose terms cancel.
FP8_TOLERANCE = 2e-3

_SLOW = 1.5
_BRIEFLY = f"timed briefly: over {_SLOW} times the best"


def tolerance(problem: Problem, output: TensorSpec) -> float:
    """The relative error up to which ``output`` is right; integers other than rounded ones: 0."""
    op = problem.op
    if rounds_to_bytes(problem, output):
        return BYTES_TOLERANCE
    limit = TOLERANCE.get(output.dtype.name, 0.0)
    if isinstance(op, Conv | MatMul) and problem.inputs[0].dtype is FP8E4M3:
        return max(limit, FP8_TOLERANCE)
    if isinstance(op, Conv | MatMul) and op.tf32:
        return max(limit, TF32_TOLERANCE)
    return limit


class CudaBench:
    """Compiles, checks and times variants; see `nrt.tuner.Bench`.

    Args:
        device: what to build for.
        runner: the GPU; None when it is not in this machine, and then nothing is measured.
        pool: compiles.
    """

    def __init__(self, device: DeviceSpec, runner: CudaRunner | None, pool: CompilePool) -> None:
        self.device = device
        self.runner = runner
        self.pool = pool
        self.can_measure = runner is not None
        self._data: tuple[Problem, list[Array], list[Any]] | None = None
        self._operands = Operands()
        self._best = math.inf
        self._compiling: dict[Problem, list[Future[Cubin]]] = {}

    def variants(self, problem: Problem) -> Sequence[tuple[Variant, Refusal | None]]:
        return variants_for(problem, self.device)

    def configs(self, variant: Variant, problem: Problem) -> Sequence[tuple[Any, ...]]:
        return variant.configs(problem, self.device)

    def estimate(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> float:
        return variant.estimate(problem, config, self.device)

    def workspace(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> int:
        return variant.emit(problem, config, self.device).workspace

    def timing_key(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> str:
        emission = variant.emit(problem, config, self.device)
        parts = [
            self.device.name,
            variant.name,
            repr(config),
            problem.key,
            # A kernel whose start overlaps its predecessor shows less time.
            "programmatic" if self.runner is not None and self.runner.programmatic else "serial",
            *(kernel_key(launch.kernel, self.device) for launch in emission.launches),
            repr([(la.grid, la.block, la.shared, la.cluster) for la in emission.launches]),
        ]
        if registry.is_users(variant):
            parts.append(user_code(type(variant)).digest)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def prepare(
        self, jobs: Iterable[tuple[Variant, Problem, tuple[Any, ...]]], *, check: bool = False
    ) -> None:
        for variant, problem, config in jobs:
            futures = self._compiling.setdefault(problem, [])
            first = check and not futures
            reference = self._reference_kernel(problem) if first else None
            if first:
                futures += self.pool.submit_all(
                    compare_spec(spec.dtype) for spec in problem.outputs if on_device(spec)
                )
            if reference is not None:
                futures += self._submit(*reference)
            futures += self._submit(variant, problem, config)

    def _submit(
        self, variant: Variant, problem: Problem, config: tuple[Any, ...]
    ) -> list[Future[Cubin]]:
        launches = variant.emit(problem, config, self.device).launches
        return self.pool.submit_all(launch.kernel for launch in launches)

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            open_: list[Future[Cubin]] = []
            for index, problem in enumerate(problems):
                running = [f for f in self._compiling.get(problem, ()) if not f.done()]
                if not running:
                    return index
                open_ += running
            left = None if end is None else max(0.0, end - time.monotonic())
            if not wait(open_, left, FIRST_COMPLETED).done:
                return None

    def abandon(self) -> None:
        self.pool.cancel()
        self._compiling.clear()

    def binary(self, spec: KernelSpec) -> Cubin:
        """The cubin of ``spec``; waits for the pool."""
        return self.pool.submit(spec).result()

    def measure(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> Timing:
        if self.runner is None:
            raise TuningError("no GPU to measure on")
        inputs, expected = self._reference(problem)
        try:
            ran = self.runner.launched(
                variant, problem, config, inputs, self.binary, operands=self._operands
            )
            errors = [
                self.runner.error(variant, found, wanted, spec, self.binary)
                for (found, spec), wanted in zip(ran.outputs, expected, strict=True)
            ]
        except (CompileError, TuningError) as error:
            return Timing(None, str(error).splitlines()[0])
        for error_, spec in zip(errors, problem.outputs, strict=True):
            limit = tolerance(problem, spec)
            if not error_ <= limit:
                return Timing(None, f"wrong result: relative error {error_:.2e}, limit {limit:.0e}")
        limit = self._best * _SLOW
        seconds = self.runner.seconds(
            variant, problem, config, inputs, self.binary, operands=self._operands, limit=limit
        )
        self._best = min(self._best, seconds)
        return Timing(seconds, _BRIEFLY if seconds > limit else "")

    def _reference(self, problem: Problem) -> tuple[list[Array], list[Any]]:
        """Random inputs, and the reference variant's outputs on the device; kept for one problem.

        A registered op has no reference variant: NumPy computes what its kernels are checked with.
        """
        if self._data is None or self._data[0] != problem:
            assert self.runner is not None
            rng = np.random.default_rng(int(problem.key[:16], 16))
            inputs = random_inputs(problem, rng)
            kernel = self._reference_kernel(problem)
            self._operands, self._best = Operands(), math.inf
            if kernel is None:
                outputs = [
                    self.runner.output_of(np.asarray(array), spec)
                    for array, spec in zip(
                        problem.op.reference(*inputs), problem.outputs, strict=True
                    )
                ]
            else:
                reference, _, config = kernel
                ran = self.runner.launched(
                    reference, problem, config, inputs, self.binary, operands=self._operands
                )
                outputs = [buffer for buffer, _ in ran.outputs]
            self._data = (problem, inputs, outputs)
        return self._data[1], self._data[2]

    def _reference_kernel(
        self, problem: Problem
    ) -> tuple[Variant, Problem, tuple[Any, ...]] | None:
        """The family's reference variant with its configuration; None for a registered op."""
        reference = next(
            (v for v, refusal in self.variants(problem) if v.reference and refusal is None), None
        )
        if reference is None:
            if registry.ops.get(problem.family) is not None:
                return None
            raise TuningError(f"{problem}: no reference variant supports it")
        return reference, problem, reference.configs(problem, self.device)[0]
