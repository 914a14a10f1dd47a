"""Which names a question means: exact, a pattern, or the end of a longer name."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from fnmatch import fnmatchcase

from nrt.errors import InputError

__all__ = ["matching_names"]

_NEAR = 5
_WILD = frozenset("*?[")


def matching_names(query: str, names: Collection[str]) -> tuple[str, ...]:
    """The names that ``query`` means, in the order of ``names``.

    A name itself comes first; then a pattern (as of `fnmatch`) of whole names, or of their ends;
    then a run of a name's parts, which dots and slashes separate: ``layer4.2.conv3`` means
    ``/layer4/layer4.2/conv3/Conv``, unless that run ends other names, which are then preferred.

    Raises:
        InputError: none is meant; the message lists near ones.
    """
    if query in names:
        return (query,)
    if _WILD & set(query):
        found = [name for name in names if fnmatchcase(name, query)]
        inner = f"*.{'.'.join(_parts(query))}"
        found = found or [n for n in names if fnmatchcase(f".{'.'.join(_parts(n))}", inner)]
        if found:
            return tuple(found)
    wanted = _parts(query)
    runs = {name: _parts(name) for name in names}
    ends = [name for name, parts in runs.items() if wanted and parts[-len(wanted) :] == wanted]
    found = ends or [name for name, parts in runs.items() if wanted and _within(wanted, parts)]
    if found:
        return tuple(found)
    raise InputError(_unknown(query, names))


def _parts(name: str) -> list[str]:
    return [part for part in name.lower().replace("/", ".").split(".") if part]


def _within(wanted: list[str], parts: list[str]) -> bool:
    return any(parts[i : i + len(wanted)] == wanted for i in range(len(parts) - len(wanted) + 1))


def _unknown(query: str, names: Collection[str]) -> str:
    lower = {name.lower(): name for name in names}
    near = [lower[n] for n in lower if query and query.lower() in n][:_NEAR]
    near += [lower[n] for n in difflib.get_close_matches(query.lower(), lower, _NEAR, 0.5)]
    shown = list(dict.fromkeys(near))[:_NEAR]
    what = f"no layer and no node of the model is called '{query}'"
    if shown:
        return f"{what}; near names: {', '.join(repr(name) for name in shown)}"
    first = ", ".join(repr(name) for name in list(names)[:_NEAR])
    return f"{what}; there are {len(names)} names: {first}{' …' if len(names) > _NEAR else ''}"
