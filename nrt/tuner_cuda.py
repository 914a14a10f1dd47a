"""The tuner's bench on a GPU, or for one that is not here (heuristic only)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nrt.cuda_kernels.compile_pool import CompilePool
from nrt.cuda_kernels.compiler import Cubin, kernel_key
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.registry import variants_for
from nrt.cuda_kernels.variant import KernelSpec, Variant
from nrt.cuda_runner import CudaRunner
from nrt.errors import CompileError, TuningError
from nrt.ir.op import Array
from nrt.problem import Problem, Refusal
from nrt.timing_cache import Timing
from nrt.trial import random_inputs, relative_error

__all__ = ["CudaBench"]

# Relative error against the reference kernel on the same stored inputs, per layer.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "fp64": 1e-10}


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
        self._data: tuple[Problem, list[Array], list[Array]] | None = None

    def variants(self, problem: Problem) -> Sequence[tuple[Variant, Refusal | None]]:
        return variants_for(problem, self.device)

    def configs(self, variant: Variant, problem: Problem) -> Sequence[tuple[Any, ...]]:
        return variant.configs(problem, self.device)

    def estimate(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> float:
        return variant.estimate(problem, config, self.device)

    def timing_key(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> str:
        emission = variant.emit(problem, config, self.device)
        parts = [
            self.device.name,
            variant.name,
            repr(config),
            problem.key,
            *(kernel_key(launch.kernel, self.device) for launch in emission.launches),
            repr([(la.grid, la.block, la.shared, la.cluster) for la in emission.launches]),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def prepare(self, jobs: Iterable[tuple[Variant, Problem, tuple[Any, ...]]]) -> None:
        for variant, problem, config in jobs:
            for launch in variant.emit(problem, config, self.device).launches:
                self.pool.submit(launch.kernel)

    def binary(self, spec: KernelSpec) -> Cubin:
        """The cubin of ``spec``; waits for the pool."""
        return self.pool.submit(spec).result()

    def measure(self, variant: Variant, problem: Problem, config: tuple[Any, ...]) -> Timing:
        if self.runner is None:
            raise TuningError("no GPU to measure on")
        inputs, expected = self._reference(problem)
        try:
            outputs = self.runner.run(variant, problem, config, inputs, self.binary)
        except (CompileError, TuningError) as error:
            return Timing(None, str(error).splitlines()[0])
        for out, ref, spec in zip(outputs, expected, problem.outputs, strict=True):
            error_ = relative_error(out, ref)
            limit = TOLERANCE.get(spec.dtype.name, 0.0)
            if not error_ <= limit:
                return Timing(None, f"wrong result: relative error {error_:.2e}, limit {limit:.0e}")
        return Timing(self.runner.seconds(variant, problem, config, inputs, self.binary))

    def _reference(self, problem: Problem) -> tuple[list[Array], list[Array]]:
        """Random inputs and the reference variant's outputs; kept for the current problem."""
        if self._data is None or self._data[0] != problem:
            assert self.runner is not None
            rng = np.random.default_rng(int(problem.key[:16], 16))
            inputs = random_inputs(problem, rng)
            reference = next(
                (v for v, refusal in self.variants(problem) if v.reference and refusal is None),
                None,
            )
            if reference is None:
                raise TuningError(f"{problem}: no reference variant supports it")
            config = reference.configs(problem, self.device)[0]
            outputs = self.runner.run(reference, problem, config, inputs, self.binary)
            self._data = (problem, inputs, outputs)
        return self._data[1], self._data[2]
