"""A copy of a function whose ``min``, ``max`` and ``math`` take symbols.

``min(x, 0)`` compares and then asks the result for its truth, and ``math.exp(x)`` asks x for a
float: neither can be overloaded by x. So the function is copied with other globals, where these
names, whatever they are called there, are functions that know symbols. Functions of the user's that
it calls are copied alike. The original and its module stay as they are.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Iterator
from functools import partial, reduce
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any

from nrt.extensions.trace import Symbol, TraceError, arithmetic, call

__all__ = ["rebound"]


def rebound(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as `nrt.extensions.trace.trace` can call it."""
    copy: Callable[..., Any] = _Rebinder().value(function)
    return copy


class _Math:
    """The module ``math`` with functions that know symbols; constants are math's own."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(math, name)
        return _of_math(found) if callable(found) else found


def _of_math(function: Any) -> Callable[..., Any]:
    name = function.__name__

    def of_math(*args: Any, **keywords: Any) -> Any:
        if any(isinstance(a, Symbol) for a in args):
            return call(f"math.{name}", name, args, keywords)
        return function(*args, **keywords)

    return of_math


def _extremum(opcode: str, function: Any, *args: Any, **keywords: Any) -> Any:
    """``min`` or ``max`` of numbers, one or more of them symbols; ``opcode`` says which."""
    values = list(args[0]) if len(args) == 1 and not isinstance(args[0], Symbol) else list(args)
    if not any(isinstance(v, Symbol) for v in values):
        return function(values, **keywords)
    if keywords:
        raise TraceError(f"{opcode} with {', '.join(keywords)}= has no instruction")
    return reduce(partial(arithmetic, opcode), values)


_MIN = partial(_extremum, "min", min)
_MAX = partial(_extremum, "max", max)
_BUILTINS = {**vars(builtins), "min": _MIN, "max": _MAX}


class _Rebinder:
    """Copies functions, each once, so that those that call each other still do."""

    def __init__(self) -> None:
        self.copies: dict[FunctionType, FunctionType] = {}

    def value(self, value: Any) -> Any:
        """What stands for ``value`` in a copied function."""
        if isinstance(value, ModuleType):
            return _Math() if value is math else value
        if value is min:
            return _MIN
        if value is max:
            return _MAX
        if isinstance(value, BuiltinFunctionType) and value.__module__ == "math":
            return _of_math(value)
        if isinstance(value, FunctionType) and not _knows_symbols(value):
            return self.function(value)
        return value

    def function(self, function: FunctionType) -> FunctionType:
        if function in self.copies:
            return self.copies[function]
        scope = {**function.__globals__, "__builtins__": _BUILTINS}
        cells = tuple(CellType() for _ in function.__closure__ or ())
        copy = FunctionType(
            function.__code__, scope, function.__name__, function.__defaults__, cells
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        self.copies[function] = copy
        for name in _names(function.__code__):
            if name in function.__globals__:
                scope[name] = self.value(function.__globals__[name])
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            try:
                cell.cell_contents = self.value(original.cell_contents)
            except ValueError:
                continue  # a variable that has no value yet
        return copy


def _knows_symbols(function: FunctionType) -> bool:
    """Functions of nrt's and NumPy's do, by themselves or by NumPy's protocols."""
    return (function.__module__ or "").partition(".")[0] in ("nrt", "numpy")


def _names(code: CodeType) -> Iterator[str]:
    """The names that ``code`` looks up, and the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
