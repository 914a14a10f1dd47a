"""GPU tests run where there is a GPU; elsewhere they say why not. Random data for all tests."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from nrt.runtime.cuda import device_count


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", type=int, default=1, metavar="N", help="one Nth of the tests, another on each run"
    )


def _take_part(config: pytest.Config, items: list[pytest.Item], count: int) -> None:
    """Keep what chance assigns to this run; the processes of one run agree."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(8)
    parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        parts[zlib.crc32(f"{run} {item.nodeid}".encode()) % count == 0].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("part") > 1:
        _take_part(config, items, config.getoption("part"))
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
