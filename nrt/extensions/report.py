"""What became of the variants that users registered, for the notes of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nrt.extensions.registry import registry

__all__ = ["variant_notes"]


class _Candidate(Protocol):
    """As `nrt.tuner.Candidate`."""

    @property
    def variant(self) -> str: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def note(self) -> str: ...


class _Choice(Protocol):
    """As `nrt.tuner.Choice`."""

    @property
    def variant(self) -> Any: ...
    @property
    def candidates(self) -> Sequence[Any]: ...


def variant_notes(choices: Mapping[str, _Choice]) -> dict[str, str]:
    """``variant NAME`` -> how often it was chosen, and where it was wrong.

    Args:
        choices: per layer.
    """
    notes = {}
    for variant in (*registry.cuda_variants.values, *registry.host_variants.values):
        rows = [
            (layer, candidate)
            for layer, choice in choices.items()
            for candidate in choice.candidates
            if candidate.variant == variant.name
        ]
        if rows:
            chosen = sum(choice.variant is variant for choice in choices.values())
            layers = len({layer for layer, _ in rows})
            notes[f"variant {variant.name}"] = f"chosen for {chosen} of {layers} layers{_bad(rows)}"
    return notes


def _bad(rows: Sequence[tuple[str, _Candidate]]) -> str:
    """Why it was not measured: every reason, with the first layer that it holds for."""
    first: dict[str, str] = {}
    for layer, candidate in rows:
        skipped = candidate.note in ("", "not timed") or candidate.note.startswith("left out")
        if candidate.seconds is None and not skipped:
            first.setdefault(candidate.note, layer)
    return "".join(f"; at '{layer}': {note}" for note, layer in first.items())
