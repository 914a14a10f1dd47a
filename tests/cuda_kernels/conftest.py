"""The GPU that kernel tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def cuda_runner() -> Iterator[object]:
    from nrt.cuda_runner import CudaRunner

    yield CudaRunner()
