"""How host kernels are compiled.

Fixed kernels take sizes as arguments and go through Numba's disk cache. Generated functions are
small (0.1 to 0.3 s each) and are compiled in every process: Numba's cache cannot hold a function
whose module cannot be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numba

__all__ = ["function_from_source", "inlined", "kernel", "precompile", "rows_address"]

_FASTMATH = {"contract"}
"""NaN and infinities keep their meaning, sums their order."""

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FASTMATH}


def kernel(function: Callable[..., Any]) -> Any:
    """Decorator: compile without the GIL, with Numba's disk cache where there is a place for it."""
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither the package's folder nor the user's cache folder is writable.
        return numba.njit(**_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Decorator of small functions that kernels call: a call inside a loop would keep it scalar."""
    return numba.njit(forceinline=True, **_OPTIONS)(function)


def precompile(function: Any) -> Any:
    """Compile a kernel whose arguments are all int64 now rather than at its first call."""
    count = function.py_func.__code__.co_argcount
    function.compile((numba.types.int64,) * count)
    return function


def function_from_source(name: str, source: str, namespace: Mapping[str, Any]) -> Any:
    """The function ``name`` that ``source`` defines among the names of ``namespace``."""
    scope: dict[str, Any] = {"__name__": "nrt_generated", **namespace}
    exec(compile(source, f"<nrt {name}>", "exec"), scope)
    return scope[name]


def rows_address(function: Any) -> Any:
    """Compile ``void(int64 x 5)``; the result's ``address`` stays valid while the object lives."""
    signature = numba.types.void(*[numba.types.int64] * 5)
    return numba.cfunc(signature, nopython=True, error_model="numpy", fastmath=_FASTMATH)(function)
