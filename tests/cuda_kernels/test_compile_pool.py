"""Worker processes: results, errors, and workers that die."""

from __future__ import annotations

import os
import sys
from concurrent.futures import wait
from pathlib import Path

import pytest

from nrt.cuda_kernels.compile_pool import CompilePool
from nrt.cuda_kernels.compiler import compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.dtypes import FP16, FP32
from nrt.errors import CompileError

from .tiny_kernels import spec

SM80 = ARCHS["sm_80"]
SECONDS = 60  # a worker starts in two; on a busy machine in a few more


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    # Workers import the kernels of this folder as these tests do.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    return tmp_path / "cache"


def test_one_worker_compiles_in_this_process() -> None:
    with CompilePool(SM80, 1) as pool:
        future = pool.submit(spec("_shared", 7))
        assert future.result(SECONDS) == compile_kernel(spec("_shared", 7), SM80, cache=False)
        assert pool._processes == []
        with pytest.raises(CompileError, match=r"kernel _raising\('here',\) does not compile"):
            pool.submit(spec("_raising", "here")).result(SECONDS)


def test_workers_give_what_this_process_does(capfd: pytest.CaptureFixture[str]) -> None:
    specs = [
        spec("_shared", 9),
        spec("_scale", FP16, 1.0),
        spec("_printing", "noise on the standard output"),
        spec("_scale", FP32, 1.0),
    ]
    with CompilePool(SM80, 2) as pool:
        futures = pool.submit_all(specs)
        results = [f.result(SECONDS) for f in futures]
        processes = list(pool._processes)
    assert 1 <= len(processes) <= 2
    assert [p.returncode for p in processes] == [0] * len(processes)
    for one, cubin in zip(specs, results, strict=True):
        assert cubin == compile_kernel(one, SM80, cache=False)
    assert "noise" in capfd.readouterr().err


def test_what_the_cache_holds_starts_no_worker() -> None:
    known = compile_kernel(spec("_shared", 10), SM80)
    with CompilePool(SM80, 2) as pool:
        assert pool.submit(spec("_shared", 10)).result(SECONDS) == known
        assert pool._processes == []
        pool.submit(spec("_shared", 13)).result(SECONDS)
        assert len(pool._processes) == 1


def test_a_spec_is_compiled_once(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with CompilePool(SM80, 1) as pool:
        first = pool.submit(spec("_counting", str(marks)))
        assert pool.submit(spec("_counting", str(marks))) is first
        assert pool.submit_all([spec("_counting", str(marks))] * 3) == [first] * 3
        first.result(SECONDS)
    assert len(list(marks.iterdir())) == 1


def test_what_is_cancelled_may_be_submitted_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with CompilePool(SM80, 1) as pool:
        first = pool.submit(spec("_shared", 11))
        waiting = pool.submit_all([spec("_scale", FP16, 3.0), spec("_counting", str(marks))])
        pool.cancel()
        assert all(f.cancelled() for f in waiting)
        assert not any(marks.iterdir())
        again = pool.submit(spec("_counting", str(marks)))
        again.result(SECONDS)
        assert first.cancelled() or first.result(SECONDS)
    assert len(list(marks.iterdir())) == 1


def test_errors_in_a_worker_come_back_and_it_goes_on() -> None:
    with CompilePool(SM80, 2) as pool:
        bad = pool.submit_all([spec("_raising", str(i)) for i in range(4)])
        wait(bad, SECONDS)
        for index, future in enumerate(bad):
            with pytest.raises(CompileError, match=rf"kernel _raising\('{index}',\) does not"):
                future.result(SECONDS)
        assert pool.submit(spec("_shared", 11)).result(SECONDS).shared == 44
        assert all(p.poll() is None for p in pool._processes)


def test_a_worker_that_dies_is_reported_and_replaced(tmp_path: Path) -> None:
    # One thread, so that the next kernel meets the dead worker.
    with CompilePool(SM80, 2) as pool:
        pool._threads._max_workers = 1
        dead = pool.submit(spec("_dying", 3))
        with pytest.raises(
            CompileError, match=r"the process that compiled .*_dying\(3,\) died with exit code 3"
        ):
            dead.result(SECONDS)
        assert pool.submit(spec("_shared", 12)).result(SECONDS).shared == 48
        assert len(pool._processes) == 2
    assert [p.returncode for p in pool._processes] == [3, 0]


def test_leaving_the_pool_cancels_what_has_not_begun() -> None:
    with CompilePool(SM80, 1) as pool:
        futures = pool.submit_all([spec("_shared", 20 + i) for i in range(30)])
    assert all(f.done() for f in futures)
    assert any(f.cancelled() for f in futures)
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(spec("_shared", 99))


def test_leaving_an_unused_pool() -> None:
    with CompilePool(SM80, 4) as pool:
        pass
    assert pool._processes == []
