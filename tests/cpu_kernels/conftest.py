"""Fresh random data for every test; the seed is printed when one fails."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng(record_property: pytest.RecordProperty) -> np.random.Generator:
    seed = int(np.random.SeedSequence().entropy % 2**32)
    record_property("seed", seed)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it only for a failing test
    return np.random.default_rng(seed)
