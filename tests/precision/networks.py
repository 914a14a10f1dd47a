"""A small network with branches, its calibration, and a bench whose times are invented."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import nrt
from nrt.problem import Problem, Refusal
from nrt.timing_cache import Timing

__all__ = ["SHAPE", "Bench", "calibrated", "images", "network"]

Array = np.ndarray[Any, np.dtype[Any]]

SHAPE = (1, 3, 9, 11)


def network(seed: int = 5, gain: float = 1.0) -> nrt.Network:
    """A stem, a block with a projection, a grouped layer, a pool and a classifier.

    Args:
        gain: of the weights of ``block.a``; the next layer's undo it.
    """
    rng = np.random.default_rng(seed)

    def conv(x: Any, out: int, size: int, *, name: str, scale: float = 1.0, groups: int = 1) -> Any:
        shape = (out, x.shape[1] // groups, size, size)
        w = rng.standard_normal(shape) * scale * np.sqrt(2 / np.prod(shape[1:]))
        b = 0.2 * rng.standard_normal(out)
        return net.conv2d(
            x,
            w.astype(np.float32),
            b.astype(np.float32),
            padding=size // 2,
            groups=groups,
            name=name,
        )

    net = nrt.Network("net")
    x = net.relu(conv(net.input("image", SHAPE), 16, 3, name="stem"), name="stem.relu")
    y = net.relu(conv(x, 32, 3, name="block.a", scale=gain), name="block.a.relu")
    y = conv(y, 32, 1, name="block.b", scale=1 / gain)
    skip = conv(x, 32, 1, name="block.down")
    x = net.relu(net.add(y, skip, name="block.sum"), name="block.out")
    x = net.relu(conv(x, 32, 3, name="grouped", groups=16), name="grouped.relu")
    x = net.relu(conv(x, 32, 1, name="last"), name="last.relu")
    x = net.flatten(net.global_avg_pool(x, name="mean"), name="flat")
    head = (rng.standard_normal((10, 32)) / 6).astype(np.float32)
    net.output(net.linear(x, head, np.zeros(10, np.float32), name="head"), "scores")
    return net


def images(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE[1:])).astype(np.float32)


@functools.cache
def calibrated(seed: int = 5, gain: float = 1.0) -> nrt.Calibration:
    return nrt.calibrate(network(seed, gain), images(8), target="cpu", method="minmax")


@dataclass(eq=False)
class Kernel:
    name: str = "kernel"
    rank: int = 1
    reference: bool = False


@dataclass
class Bench:
    """One kernel per problem; ``seconds`` says how long it takes."""

    seconds: Callable[[Problem], float]
    can_measure: bool = True
    kernel: Kernel = field(default_factory=Kernel)
    measured: list[Problem] = field(default_factory=list)

    def variants(self, problem: Problem) -> Sequence[tuple[Kernel, Refusal | None]]:
        return [(self.kernel, None)]

    def configs(self, variant: Kernel, problem: Problem) -> Sequence[tuple[Any, ...]]:
        return [()]

    def estimate(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> float:
        return self.seconds(problem)

    def workspace(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> int:
        return 0

    def timing_key(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> str:
        return problem.key

    def prepare(self, jobs: Iterable[tuple[Kernel, Problem, Any]], *, check: bool = False) -> None:
        """Nothing is compiled."""

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        return 0

    def abandon(self) -> None:
        """Nothing was begun."""

    def measure(self, variant: Kernel, problem: Problem, config: tuple[Any, ...]) -> Timing:
        self.measured.append(problem)
        return Timing(self.seconds(problem))
