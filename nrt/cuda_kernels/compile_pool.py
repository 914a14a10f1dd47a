"""Compiles kernels in worker processes.

Numba compiles under one global lock, so threads do not help. The workers are plain subprocesses
that run this module and speak length-prefixed pickles over pipes: unlike `multiprocessing`, that
never imports the caller's main script again, so a user needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from nrt.cuda_kernels.compiler import Cubin, cached_kernel, compile_kernel
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import KernelSpec
from nrt.errors import CompileError
from nrt.extensions.registry import registry

__all__ = ["CompilePool"]

_LENGTH = struct.Struct("<Q")


class CompilePool:
    """Worker processes that turn specs into cubins; use as a context manager.

    A spec that is asked for again shares the first future. With ``workers=1`` it compiles in the
    calling process, on a thread.
    """

    def __init__(self, device: DeviceSpec, workers: int) -> None:
        self.device = device
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="nrt-compile")
        self._futures: dict[KernelSpec, Future[Cubin]] = {}
        self._local = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            _close(process)

    def submit(self, spec: KernelSpec) -> Future[Cubin]:
        """The cubin of ``spec``, to come; its exception is a CompileError."""
        if spec not in self._futures or self._futures[spec].cancelled():
            self._futures[spec] = self._threads.submit(self._compile, spec)
        return self._futures[spec]

    def cancel(self) -> None:
        """Drop what no worker has begun; it may be submitted again."""
        for future in self._futures.values():
            future.cancel()

    def submit_all(self, specs: Iterable[KernelSpec]) -> list[Future[Cubin]]:
        return [self.submit(spec) for spec in specs]

    def _compile(self, spec: KernelSpec) -> Cubin:
        if self.workers == 1 or spec.local is not None:
            return compile_kernel(spec, self.device)
        # A rebuild finds everything here: no worker starts, which takes seconds.
        cached = cached_kernel(spec, self.device)
        if cached is not None:
            return cached
        process = self._process()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, (spec, self.device))
            answer = _receive(process.stdout)
        except (BrokenPipeError, EOFError) as error:
            # The next kernel of this thread gets a new process.
            self._local.process = None
            _close(process)
            raise CompileError(
                f"the process that compiled {spec.factory}{spec.params} died with exit code "
                f"{process.returncode}"
            ) from error
        if isinstance(answer, Cubin):
            return answer
        raise CompileError(str(answer))

    def _process(self) -> subprocess.Popen[bytes]:
        """This thread's worker."""
        process: subprocess.Popen[bytes] | None = getattr(self._local, "process", None)
        if process is None:
            process = subprocess.Popen(
                [sys.executable, "-m", "nrt.cuda_kernels.compile_pool"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._local.process = process
            self._processes.append(process)
        return process


def _close(process: subprocess.Popen[bytes]) -> None:
    """Let a worker end, and wait for it."""
    assert process.stdin is not None
    assert process.stdout is not None
    # A worker that died leaves bytes behind that cannot be flushed.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
    process.stdout.close()


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next message of the pipe to our own subprocess; EOFError when it has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def _serve() -> None:
    """Answer requests on standard input until it closes."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    registry.compiling = True
    sys.stdout = sys.stderr  # whatever a library prints must not enter the protocol
    while True:
        try:
            spec, device = _receive(requests)
        except EOFError:
            return
        try:
            answer: Cubin | str = compile_kernel(spec, device)
        except CompileError as error:
            answer = str(error)
        _send(answers, answer)


if __name__ == "__main__":
    _serve()
