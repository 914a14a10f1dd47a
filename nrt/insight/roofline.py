"""What a device can do at most: its roofline, measured or by its data sheet.

The model is Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for
multicore architectures" (2009): a layer that does I operations per byte of memory runs at no more
than min(peak rate, I x bandwidth).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nrt.insight.data_sheets import DATA_SHEETS, DataSheet
from nrt.settings import settings

if TYPE_CHECKING:
    from nrt.cuda_runner import CudaRunner
    from nrt.plan import Target

__all__ = ["Ceilings", "ceilings_of", "measure_cpu", "measure_cuda"]

_GEMM = 8192
_GEMM_OF_SMALL = 4096
"""Where fp16 runs below `_SMALL`: the larger one would take long to check."""
_SMALL = 200e12
_COPIED = 1 << 26
"""Elements of fp16: 128 MiB read and as many written, twice what an L2 cache holds."""


@dataclass(frozen=True)
class Ceilings:
    """The highest rates of a device.

    Attributes:
        device: what it is.
        bandwidth: bytes per second to and from memory, reads and writes together.
        rates: precision -> operations per second.
        source: where the numbers are from.
    """

    device: str
    bandwidth: float
    rates: Mapping[str, float]
    source: str

    def attainable(self, precision: str, intensity: float) -> float | None:
        """Operations per second at ``intensity`` operations per byte; None: rate unknown."""
        rate = self.rates.get(precision)
        return None if rate is None else min(rate, intensity * self.bandwidth)

    def ridge(self, precision: str) -> float | None:
        """Operations per byte from which computing, not memory, is the limit."""
        rate = self.rates.get(precision)
        return None if rate is None else rate / self.bandwidth

    def to_data(self) -> dict[str, Any]:
        """Plain data, with the names of the attributes."""
        return asdict(self)


def ceilings_of(target: Target, *, measure: bool = True) -> Ceilings | None:
    """The ceilings of the device that a plan was built for.

    Args:
        target: the plan's.
        measure: measure, where the device is this machine's: on a GPU once, with nrt's own kernels
            (the times are kept in the timing cache); on a CPU each time, in under half a second.
            False: the data sheet.

    Returns:
        None where nothing is known: a GPU without a sheet, or a CPU that is not measured.
    """
    if target.kind == "cpu":
        return measure_cpu() if measure else None
    sheet = _sheet(target)
    if measure:
        from nrt.cuda_runner import CudaRunner
        from nrt.runtime.cuda import device_count

        if device_count() > 0:
            runner = CudaRunner()
            if runner.device.name == target.device:
                return measure_cuda(runner, sheet)
    if sheet is None:
        return None
    return Ceilings(sheet.name, sheet.bandwidth, sheet.rates, f"data sheet of {sheet.name}")


def measure_cpu() -> Ceilings:
    """Copy 64 MiB and multiply two fp32 matrices of 1024 x 1024 with NumPy's BLAS; best of five."""
    source = np.ones(16 << 20, np.float32)
    target = np.empty_like(source)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1024, 1024), np.float32) for _ in range(2))
    product = np.empty_like(a)
    copy = _best(lambda: np.copyto(target, source))
    gemm = _best(lambda: np.matmul(a, b, out=product))
    rate = 2 * 1024**3 / gemm
    # Narrow types are widened to fp32 before they are multiplied.
    rates = dict.fromkeys(("fp32", "tf32", "fp16", "bf16"), rate)
    return Ceilings(
        "this CPU", 2 * source.nbytes / copy, rates, "measured: np.copyto of 64 MiB, sgemm of 1024"
    )


def _best(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_cuda(runner: CudaRunner, sheet: DataSheet | None = None) -> Ceilings:
    """Tune a copy and an fp16 matrix product with nrt's own kernels; the fastest are the ceilings.

    Args:
        runner: the GPU.
        sheet: gives the rates of other precisions, in proportion to what fp16 reached.
    """
    from nrt.cuda_kernels.compile_pool import CompilePool
    from nrt.dtypes import FP16
    from nrt.ir.ops import MatMul, Relu
    from nrt.problem import Problem, TensorSpec
    from nrt.timing_cache import TimingCache
    from nrt.tuner import tune
    from nrt.tuner_cuda import CudaBench

    known = runner.device
    size = _GEMM if known.fp16_flops > _SMALL else _GEMM_OF_SMALL
    square = TensorSpec.dense((size, size), FP16)
    gemm = Problem(MatMul(), (square, square), (square,), (False, True))
    flat = TensorSpec.dense((_COPIED,), FP16)
    copy = Problem(Relu(), (flat,), (flat,), (False,))
    cache = TimingCache(settings().cache_dir / "timings-cuda.json")
    with CompilePool(runner.device, settings().workers) as pool:
        bench = CudaBench(runner.device, runner, pool)
        try:
            choices = tune([gemm, copy], bench, opt_level=2, cache=cache)
        finally:
            cache.save()
    product, moved = choices[gemm].seconds, choices[copy].seconds
    fp16 = 2 * size**3 / product if product else known.fp16_flops
    bandwidth = 2 * flat.nbytes / moved if moved else known.bandwidth
    rates = {"fp16": fp16, "bf16": fp16}
    source = f"measured: nrt's copy of 128 MiB and fp16 product of {size}"
    if sheet is not None:
        scale = fp16 / sheet.rates["fp16"]
        rates = {**{p: r * scale for p, r in sheet.rates.items()}, **rates}
        source += f"; other types as in the data sheet of {sheet.name}, times {scale:.2f}"
    return Ceilings(known.name, bandwidth, rates, source)


def _sheet(target: Target) -> DataSheet | None:
    """By the product's name; without one, the first product of the architecture."""
    if target.device:
        words = set(re.split(r"[\s-]+", target.device.lower()))
        fits = [s for s in DATA_SHEETS if words.issuperset(s.words)]
        return fits[0] if fits else None
    fits = [s for s in DATA_SHEETS if s.arch == target.arch]
    return fits[0] if fits else None
