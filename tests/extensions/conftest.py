"""What a test registers is forgotten at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nrt.extensions.registry import registry


@pytest.fixture(autouse=True)
def _scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    with registry.scope():
        registry.clear()
        yield
