"""GPU tests run where there is a GPU; elsewhere they say why not. Random data for all tests."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sampling import left_out

from nrt.runtime.cuda import device_count

# Tests share the machine: the times that they take must not be those that a user's builds find.
os.environ.setdefault("NRT_CACHE_DIR", str(Path.home() / ".cache" / "nrt-tests"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", type=int, default=1, metavar="N", help="one Nth of the tests, another on each run"
    )
    parser.addoption(
        "--every-case", action="store_true", help="all cases of tests that are marked some(count)"
    )


def _keep(
    config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]
) -> None:
    parts: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        parts[wanted(item)].append(item)
    if parts[False]:
        config.hook.pytest_deselected(items=parts[False])
        items[:] = parts[True]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The processes of one run agree.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(8)

    def chance(item: pytest.Item) -> int:
        return int.from_bytes(hashlib.sha256(f"{run} {item.nodeid}".encode()).digest()[:8])

    if not config.getoption("every_case"):
        names = left_out(items, chance)
        _keep(config, items, lambda item: item.nodeid not in names)
    if (count := config.getoption("part")) > 1:
        _keep(config, items, lambda item: chance(item) % count == 0)
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
