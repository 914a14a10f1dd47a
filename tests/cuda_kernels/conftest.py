"""The GPU that kernel tests run on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def cuda_runner() -> object:
    from nrt.cuda_runner import CudaRunner

    return CudaRunner()
