"""PyTorch's side of the protocol: its work in a CUDA graph, timed by events around replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.protocol import Sampler

__all__ = ["event_sampler", "graph_of", "precision_of_products"]


def graph_of(work: Callable[[], Any], warm_up: int = 3) -> tuple[torch.cuda.CUDAGraph, Any]:
    """``work`` captured as a CUDA graph, and what it returned: the graph's output buffers."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(warm_up):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = work()
    return graph, result


def event_sampler(enqueue: Callable[[], Any], inner: int = 1) -> Sampler:
    """Device seconds of one of the ``inner`` runs that ``enqueue`` puts on the current stream."""

    def sample(repeats: int) -> list[float]:
        pairs = [(_event(), _event()) for _ in range(repeats)]
        # As nrt's own clock does: a few runs keep the device busy while the host gets ahead.
        for _ in range(3):
            enqueue()
        for start, end in pairs:
            start.record()
            enqueue()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 / inner for start, end in pairs]

    return sample


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def precision_of_products(precision: str) -> Iterator[None]:
    """Let fp32 matrix products and convolutions compute in tf32 inside, if ``precision`` says."""
    allowed = precision == "tf32"
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
