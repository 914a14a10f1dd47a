"""GPU tests run where there is a GPU; elsewhere they say why not. Random data for all tests."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
import pytest

from nrt.runtime.cuda import device_count


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    # Asked for by name, they run: on a machine without a GPU that is an error to be seen.
    if not gpu or config.getoption("markexpr").strip() == "gpu" or device_count() > 0:
        return
    reason = "needs an NVIDIA GPU and its driver: none found (`pytest -m gpu` runs it regardless)"
    for item in gpu:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng(record_property: Callable[[str, object], None]) -> np.random.Generator:
    """Data that differs from run to run; the seed is in the report of a failing test."""
    seed = secrets.randbits(32)
    record_property("seed", seed)
    # Captured output is shown with a failure.
    print(f"rng seed {seed}")  # noqa: T201
    return np.random.default_rng(seed)
