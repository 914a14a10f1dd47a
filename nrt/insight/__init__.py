"""Answers about compiled networks, as data; `nrt.cli` shows them."""

from __future__ import annotations

__all__: list[str] = []
