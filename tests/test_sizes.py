"""Sizes of memory as text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt.errors import BuildError
from nrt.sizes import human_bytes, parse_bytes


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (7, 7),
        ("7", 7),
        ("7B", 7),
        ("512 MiB", 512 << 20),
        ("512mib", 512 << 20),
        (" 1.5 GiB ", 3 << 29),
        ("2GB", 2_000_000_000),
        ("80 kB", 80_000),
        ("3KiB", 3072),
    ],
)
def test_sizes(size: int | str, count: int) -> None:
    assert parse_bytes(size) == count


NO_TEXT = ["", "MiB", "-1 MiB", "1,5 GiB", "2 TB", "0", "0.1", "1e9", "k", "5k", "5i"]


@pytest.mark.parametrize("size", [0, -1, True, 1.5, None, *NO_TEXT])
def test_no_sizes(size: Any) -> None:
    with pytest.raises(BuildError, match=r"is no size of memory; expected a positive number of b"):
        parse_bytes(size)


@given(st.integers(1, 1 << 40))
def test_what_is_shown_is_read_again(count: int) -> None:
    assert parse_bytes(human_bytes(count)) == pytest.approx(count, rel=0.06)
