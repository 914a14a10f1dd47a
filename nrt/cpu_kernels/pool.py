"""Threads for host kernels: chunks of one job on a few threads that live as long as the process.

Kernels release the GIL, so Python threads are enough, and one compilation serves serial and
parallel calls; Numba's own parallel back ends compile slowly and some abort when two threads enter
them.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["parallel", "ranges", "threads"]


class _Job:
    def __init__(self, work: Callable[[int], None], chunks: int) -> None:
        self.work = work
        self.chunks = chunks
        self.next = itertools.count()
        self.finished = itertools.count(1)
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def help(self) -> None:
        """Take chunks until none is left. ``next`` on a count is atomic under the GIL."""
        while (chunk := next(self.next)) < self.chunks:
            try:
                if self.error is None:
                    self.work(chunk)
            except BaseException as error:  # noqa: BLE001 - raised again by `parallel`
                self.error = error
            if next(self.finished) == self.chunks:
                self.done.release()


class _Pool:
    def __init__(self, size: int) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.size = size
        for index in range(size - 1):
            threading.Thread(target=self._serve, name=f"nrt-cpu-{index}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.jobs.get().help()


_lock = threading.Lock()
_pool: _Pool | None = None


def threads() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _forget() -> None:
    # Threads do not survive a fork.
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _get() -> _Pool:
    global _pool  # noqa: PLW0603
    with _lock:
        if _pool is None:
            _pool = _Pool(threads())
        return _pool


def parallel(work: Callable[[int], None], chunks: int) -> None:
    """Call ``work(0) ... work(chunks - 1)``, in any order and at the same time.

    The calling thread works too, so that a busy pool delays a job but never blocks it.

    Raises:
        whatever ``work`` raised first.
    """
    if chunks <= 1:
        for chunk in range(chunks):
            work(chunk)
        return
    pool = _get()
    job = _Job(work, chunks)
    for _ in range(min(pool.size, chunks) - 1):
        pool.jobs.put(job)
    job.help()
    job.done.acquire()
    if job.error is not None:
        raise job.error


def ranges(units: int, grain: int) -> int:
    """How many chunks to cut ``units`` into when less than ``grain`` of them is not worth a
    thread.
    """
    count = threads()
    if count == 1:
        return 1
    return max(1, min(4 * count, units // max(grain, 1)))
