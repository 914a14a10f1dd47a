"""The tuner's bench on the host."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nrt import cpu_kernels
from nrt.cpu_kernels import variants_for
from nrt.cpu_kernels.variant import HostCall, HostVariant
from nrt.errors import BuildError
from nrt.extensions.registry import registry
from nrt.extensions.user_code import user_code
from nrt.ir.op import Array
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.timing_cache import Timing
from nrt.trial import BYTES_TOLERANCE, random_inputs, relative_error, rounds_to_bytes

__all__ = ["CpuBench", "tolerance"]

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "fp64": 1e-10, "fp8e4m3": 1e-2}
_BUDGET = 0.05
"""Seconds of repeats per candidate, after one run that warms up."""


def tolerance(problem: Problem, output: TensorSpec) -> float:
    """The relative error up to which ``output`` is right; integers other than rounded ones: 0."""
    if rounds_to_bytes(problem, output):
        return BYTES_TOLERANCE
    return TOLERANCE.get(output.dtype.name, 0.0)


@functools.cache
def _source_hash() -> str:
    """Hash of the host kernels' sources: another version's times do not count."""
    digest = hashlib.sha256()
    for folder in cpu_kernels.__path__:
        for path in sorted(Path(folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class CpuBench:
    """Binds, checks and times host variants; see `nrt.tuner.Bench`."""

    def __init__(self) -> None:
        self.can_measure = True
        self._data: tuple[Problem, list[Array], list[Array]] | None = None
        self._machine = f"{platform.machine()} {platform.processor()} numpy {np.__version__}"

    def variants(self, problem: Problem) -> Sequence[tuple[HostVariant, Refusal | None]]:
        return variants_for(problem)

    def configs(self, variant: HostVariant, problem: Problem) -> Sequence[tuple[Any, ...]]:
        return variant.configs(problem)

    def estimate(self, variant: HostVariant, problem: Problem, config: tuple[Any, ...]) -> float:
        del problem, config
        return float(variant.rank)

    def workspace(self, variant: HostVariant, problem: Problem, config: tuple[Any, ...]) -> int:
        return variant.workspace(problem, config)

    def timing_key(self, variant: HostVariant, problem: Problem, config: tuple[Any, ...]) -> str:
        parts = [self._machine, _source_hash(), variant.name, repr(config), problem.key]
        if registry.is_users(variant):
            parts.append(user_code(type(variant)).digest)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def prepare(
        self,
        jobs: Iterable[tuple[HostVariant, Problem, tuple[Any, ...]]],
        *,
        check: bool = False,
    ) -> None:
        """Nothing to do ahead: binding compiles."""

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        del problems, seconds
        return 0

    def abandon(self) -> None:
        """Nothing was begun ahead."""

    def measure(self, variant: HostVariant, problem: Problem, config: tuple[Any, ...]) -> Timing:
        inputs, expected = self._reference(problem)
        call, views, outputs, work = _bind(variant, problem, config, inputs)
        try:
            call(views, outputs, work)
        except Exception as failure:
            if not registry.is_users(variant):
                raise
            raise BuildError(
                f"variant '{variant.name}' raised {type(failure).__name__} on {problem}: {failure}"
            ) from failure
        for out, ref, spec in zip(outputs, expected, problem.outputs, strict=True):
            error = relative_error(out, ref)
            limit = tolerance(problem, spec)
            if not error <= limit:
                return Timing(None, f"wrong result: relative error {error:.2e}, limit {limit:.0e}")
        times: list[float] = []
        stop = time.perf_counter() + _BUDGET
        while len(times) < 3 or (time.perf_counter() < stop and len(times) < 100):
            start = time.perf_counter()
            call(views, outputs, work)
            times.append(time.perf_counter() - start)
        return Timing(float(np.median(times)))

    def _reference(self, problem: Problem) -> tuple[list[Array], list[Array]]:
        if self._data is None or self._data[0] != problem:
            rng = np.random.default_rng(int(problem.key[:16], 16))
            inputs = random_inputs(problem, rng)
            self._data = (problem, inputs, list(problem.op.reference(*inputs)))
        return self._data[1], self._data[2]


def _bind(
    variant: HostVariant, problem: Problem, config: tuple[Any, ...], inputs: Sequence[Array]
) -> tuple[HostCall, list[Array], list[Array], Array]:
    """The call and its arrays; outputs start as NaN bits."""
    views = []
    for slot, (array, spec) in enumerate(zip(inputs, problem.inputs, strict=True)):
        packed = array
        if problem.constants[slot]:
            packed = variant.pack(problem, config, slot, array)
        views.append(_strided(spec, array) if packed is array else np.ascontiguousarray(packed))
    outputs = [_strided(spec, None) for spec in problem.outputs]
    nbytes = variant.workspace(problem, config)
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return variant.bind(problem, config), views, outputs, raw[start : start + nbytes]


def _strided(spec: TensorSpec, array: Array | None) -> Array:
    flat = np.full(spec.nbytes, 0xFF, np.uint8).view(spec.dtype.numpy)
    view = np.lib.stride_tricks.as_strided(
        flat, spec.shape, tuple(s * spec.dtype.itemsize for s in spec.strides)
    )
    if array is not None:
        view[...] = array
    return view
