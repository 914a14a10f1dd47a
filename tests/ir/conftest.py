"""Random data that differs from run to run; the seed is in the report of a failing test."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def rng(record_property: Callable[[str, object], None]) -> np.random.Generator:
    seed = secrets.randbits(32)
    record_property("seed", seed)
    # Captured output is shown with a failure.
    print(f"rng seed {seed}")  # noqa: T201
    return np.random.default_rng(seed)
