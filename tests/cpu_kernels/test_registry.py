"""The table of host variants, binding from a plan, the thread pool."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from nrt.cpu_kernels import VARIANTS, bind, variant_by_name, variants_for
from nrt.cpu_kernels.pool import parallel
from nrt.errors import PlanError
from nrt.ir.ops import OPS, Conv, Relu
from tests.cpu_kernels.harness import nhwc, problem, spec


def test_names_are_unique_and_every_op_has_the_reference() -> None:
    names = [v.name for v in VARIANTS]
    assert len(set(names)) == len(names)
    reference = variant_by_name("cpu_reference")
    assert set(reference.ops) == set(OPS)
    assert [v.name for v in VARIANTS if v.reference] == ["cpu_reference"]


def test_variants_for_lists_refusals() -> None:
    found = {v.name: r for v, r in variants_for(problem(Relu(), [spec((3,))]))}
    assert found == {"cpu_pointwise": None, "cpu_reference": None}


def test_bind_from_plain_data(rng) -> None:
    p = problem(Conv(), [nhwc(1, 4, 3, 3), spec((5, 4, 1, 1))], ["nhwc"])
    variant = variant_by_name("cpu_conv_indirect")
    config = variant.configs(p)[0]
    call = bind(variant.name, p.to_data(), list(config))
    x = rng.standard_normal((1, 3, 3, 4)).astype(np.float32).transpose(0, 3, 1, 2)
    w = rng.standard_normal((5, 4, 1, 1)).astype(np.float32)
    out = np.empty((1, 3, 3, 5), np.float32).transpose(0, 3, 1, 2)
    call([x, variant.pack(p, config, 1, w)], [out], np.empty(0, np.uint8))
    np.testing.assert_allclose(out, p.op.reference(x, w)[0], rtol=1e-4, atol=1e-5)


def test_bind_refuses() -> None:
    p = problem(Relu(), [spec((3,))])
    with pytest.raises(PlanError, match=r"host kernel 'nope' is unknown; .*cpu_pointwise.*Build"):
        bind("nope", p.to_data(), ())
    with pytest.raises(PlanError, match="'cpu_pool' does not solve Relu"):
        bind("cpu_pool", p.to_data(), ())
    empty = problem(Conv(), [nhwc(0, 4, 3, 3), spec((5, 4, 1, 1))])
    with pytest.raises(PlanError, match=r"'cpu_conv_indirect' refuses Conv.*an empty tensor"):
        bind("cpu_conv_indirect", empty.to_data(), ())
    with pytest.raises(PlanError, match="malformed problem"):
        bind("cpu_pool", [1, 2], ())


def test_import_does_not_load_numba() -> None:
    code = "import sys, nrt.cpu_kernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_parallel_covers_all_chunks_from_several_threads() -> None:
    counts = np.zeros((4, 50), np.int64)

    def caller(index: int) -> None:
        def work(chunk: int) -> None:
            counts[index, chunk] += 1

        parallel(work, 50)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counts == 1).all()
    parallel(lambda chunk: None, 0)


def test_parallel_raises_what_work_raised() -> None:
    def work(chunk: int) -> None:
        if chunk == 3:
            raise ValueError("chunk three")

    with pytest.raises(ValueError, match="chunk three"):
        parallel(work, 8)
