"""A Python function of numbers, traced once, as a pointwise program.

The function is called on symbols. Operators on a symbol write instructions, NumPy hands its ufuncs
over by the protocols ``__array_ufunc__`` and ``__array_function__``, and what cannot be overloaded,
``min``, ``max`` and the functions of ``math``, is rebound in a copy of the function before the
call (see `nrt.extensions.rebind`). What a symbol is worth is not known, so the function cannot
branch on it: ``nrt.where`` stands for the conditional expression.

Numbers mix as in Python: a condition counts as 0 or 1, an integer joins a float as a float, and
``/`` of integers is a float.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from nrt.errors import ExtensionError
from nrt.ir.pointwise import Builder, Program

__all__ = ["Symbol", "TraceError", "arithmetic", "call", "trace", "where"]

_RANK = {"b": 0, "i": 1, "f": 2}


class TraceError(ExtensionError):
    """The function does what a pointwise program cannot; `trace` adds its name to the text."""


def trace(
    function: Callable[..., Any], kinds: Sequence[str], keywords: Mapping[str, Any]
) -> Program:
    """The program of ``function(*symbols, **keywords)``, for inputs of these kinds.

    Args:
        function: of one number per input; rebound already.
        kinds: ``f``, ``i`` or ``b`` per input.
        keywords: numbers that are constants of the program.

    Raises:
        TraceError: the function asks a symbol what it is worth, or calls what has no instruction.
    """
    builder = Builder(kinds)
    symbols = [Symbol(builder, register, kind) for register, kind in enumerate(kinds)]
    result = function(*symbols, **keywords)
    if not (_is_number(result) or (isinstance(result, Symbol) and result.builder is builder)):
        raise TraceError(f"it returned {type(result).__name__}, expected one number")
    return builder.build(_lifted(builder, result).register)


def where(condition: Any, a: Any, b: Any) -> Any:
    """``a`` where ``condition`` holds, else ``b``: the conditional expression of a traced function.

    Both sides are computed, so neither may depend on the condition to be safe. On arrays it is
    `numpy.where`.
    """
    if not any(isinstance(v, Symbol) for v in (condition, a, b)):
        return np.where(condition, a, b)
    builder = _builder(condition, a, b)
    test = _lifted(builder, condition)
    x, y = _alike(builder, a, b)
    return _emit("where", _converted(test, "b"), x, y)


class Symbol:
    """A register of the program that is being written.

    Attributes:
        builder: of that program. register: its number. kind: ``f``, ``i`` or ``b``.
    """

    __slots__ = ("builder", "kind", "register")

    # Equality of symbols is an instruction.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: Builder, register: int, kind: str) -> None:
        self.builder = builder
        self.register = register
        self.kind = kind

    # -- arithmetic ------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Any:
        return arithmetic("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return arithmetic("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return arithmetic("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return arithmetic("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return arithmetic("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return arithmetic("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return arithmetic("div", self, other, least="f")

    def __rtruediv__(self, other: Any) -> Any:
        return arithmetic("div", other, self, least="f")

    def __floordiv__(self, other: Any) -> Any:
        return _floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _floor_divide(other, self)

    def __mod__(self, other: Any) -> Any:
        return _remainder(self, other)

    def __rmod__(self, other: Any) -> Any:
        return _remainder(other, self)

    def __pow__(self, other: Any) -> Any:
        return _power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return _power(other, self)

    def __neg__(self) -> Any:
        return _emit("neg", _converted(self, "i") if self.kind == "b" else self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return _emit("abs", _converted(self, "i") if self.kind == "b" else self)

    def __round__(self, digits: int | None = None) -> Any:
        if digits:
            raise TraceError(f"round to {digits} digits has no instruction; scale, round, divide")
        return self if self.kind != "f" else _emit("round", self)

    def __floor__(self) -> Any:
        return self if self.kind != "f" else _emit("floor", self)

    def __ceil__(self) -> Any:
        return self if self.kind != "f" else _emit("ceil", self)

    def __trunc__(self) -> Any:
        return self if self.kind != "f" else where(self < 0, _emit("ceil", self), self.__floor__())

    # -- comparisons and conditions --------------------------------------------------------------

    def __lt__(self, other: Any) -> Any:
        return _compare("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return _compare("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return _compare("lt", other, self)

    def __ge__(self, other: Any) -> Any:
        return _compare("le", other, self)

    def __eq__(self, other: Any) -> Any:
        return _compare("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return ~_compare("eq", self, other)

    def __and__(self, other: Any) -> Any:
        return _logical("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        return _logical("or", self, other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Any:
        return _logical("xor", self, other)

    __rxor__ = __xor__

    def __invert__(self) -> Any:
        if self.kind != "b":
            raise TraceError("~ negates conditions, this is a number")
        return _emit("not", self)

    # -- what a symbol cannot say ----------------------------------------------------------------

    def __bool__(self) -> bool:
        raise TraceError(
            "it asks whether a value is true, which is not known while it is traced (an if, a "
            "conditional expression, and, or, not, or a chain such as 0 < x < 6); write "
            "nrt.where(condition, a, b), and & | ~ with parentheses around comparisons"
        )

    def _no_value(self, *_: object) -> Any:
        raise TraceError(
            "it needs the value of an input, which is not known while it is traced (float(x), "
            "int(x), an index, a loop over x, or a function of another library); use operators, "
            "min, max, abs, nrt.where, and functions of math or NumPy"
        )

    __float__ = __int__ = __index__ = __iter__ = __len__ = __getitem__ = __complex__ = _no_value

    # -- NumPy -----------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **keywords: Any) -> Any:
        if method != "__call__" or keywords:
            what = ", ".join(keywords) if keywords else f"method {method}"
            raise TraceError(f"np.{ufunc.__name__} with {what} has no instruction")
        return call(f"np.{ufunc.__name__}", ufunc.__name__, inputs, {})

    def __array_function__(self, function: Any, types: Any, args: Any, keywords: Any) -> Any:
        del types
        return call(f"np.{function.__name__}", function.__name__, args, keywords)


# -- instructions ----------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating)


def _builder(*values: Any) -> Builder:
    return next(v.builder for v in values if isinstance(v, Symbol))


def _lifted(builder: Builder, value: Any) -> Symbol:
    """A number as a constant of the program; a symbol as it is."""
    if isinstance(value, Symbol):
        if value.builder is not builder:
            raise TraceError("it uses a value that another function was traced with")
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not _is_number(value):
        is_array = isinstance(value, np.ndarray)
        what = f"an array of shape {list(value.shape)}" if is_array else repr(value)
        raise TraceError(f"it computes with {what}, expected numbers; make it an input")
    plain = value.item() if isinstance(value, np.generic) else value
    kind = "b" if isinstance(plain, bool) else "i" if isinstance(plain, int) else "f"
    return Symbol(builder, builder.const(plain), kind)


def _emit(opcode: str, *args: Symbol, kind: str = "") -> Symbol:
    builder = args[0].builder
    return Symbol(builder, builder(opcode, *(a.register for a in args)), kind or args[-1].kind)


def _converted(value: Symbol, kind: str) -> Symbol:
    return value if value.kind == kind else _emit(f"to_{kind}", value, kind=kind)


def _alike(builder: Builder, *values: Any, least: str = "b") -> list[Symbol]:
    """``values`` as registers of one kind, the widest among them; numbers become such constants."""
    lifted = [v if isinstance(v, Symbol) else _lifted(Builder(()), v) for v in values]
    kind = max((least, *(s.kind for s in lifted)), key=_RANK.__getitem__)
    plain = {"b": bool, "i": int, "f": float}[kind]
    return [
        _converted(_lifted(builder, v), kind)
        if isinstance(v, Symbol)
        else _lifted(builder, plain(v))
        for v in values
    ]


def arithmetic(opcode: str, a: Any, b: Any, least: str = "i") -> Any:
    """The instruction ``opcode`` on two numbers, at least one of them a symbol."""
    return _emit(opcode, *_alike(_builder(a, b), a, b, least=least))


def _compare(opcode: str, a: Any, b: Any) -> Symbol:
    least = "b" if opcode == "eq" else "i"
    return _emit(opcode, *_alike(_builder(a, b), a, b, least=least), kind="b")


def _logical(opcode: str, a: Any, b: Any) -> Symbol:
    x, y = (_lifted(_builder(a, b), v) for v in (a, b))
    if x.kind != "b" or y.kind != "b":
        raise TraceError("& | ^ join conditions, this is a number; put comparisons in parentheses")
    return _emit(opcode, x, y)


def _floor_divide(a: Any, b: Any) -> Any:
    x, y = _alike(_builder(a, b), a, b, least="i")
    if x.kind != "f":
        raise TraceError("// and % of integers have no instruction; make one of them a float")
    return _emit("floor", _emit("div", x, y))


def _remainder(a: Any, b: Any) -> Any:
    return a - _floor_divide(a, b) * b


def _power(a: Any, b: Any) -> Any:
    if _is_number(b) and isinstance(a, Symbol):
        if b == 2:
            return a * a
        if b == 3:
            return a * a * a
        if b == 0.5:
            return _of_float("sqrt")(a)
    return arithmetic("pow", a, b)


def _of_float(opcode: str) -> Callable[..., Any]:
    return lambda x: _emit(opcode, _converted(x, "f"))


def _log1p(x: Any) -> Any:
    """log(1 + x) without the loss near 0: Kahan's correction of what 1 + x rounded away."""
    u = 1.0 + x
    rounded = (u != 1.0) & (u < float("inf"))
    scale = where(rounded, x, 1.0) / where(rounded, u - 1.0, 1.0)
    return where(u == 1.0, x, _of_float("log")(u) * scale)


def _clip(x: Any, low: Any = None, high: Any = None, **keywords: Any) -> Any:
    low, high = keywords.pop("min", low), keywords.pop("max", high)
    low, high = keywords.pop("a_min", low), keywords.pop("a_max", high)
    if keywords:
        raise TraceError(f"np.clip with {', '.join(keywords)} has no instruction")
    x = x if low is None else arithmetic("max", x, low)
    return x if high is None else arithmetic("min", x, high)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        name: _of_float(name)
        for name in ("sqrt", "exp", "log", "tanh", "erf", "sin", "cos", "sigmoid")
    },
    "expit": _of_float("sigmoid"),
    "exp2": lambda x: _of_float("exp")(x * math.log(2)),
    "log2": lambda x: _of_float("log")(x) * (1 / math.log(2)),
    "log10": lambda x: _of_float("log")(x) * (1 / math.log(10)),
    "log1p": _log1p,
    # tanh(x/2) = (e^x - 1) / (e^x + 1) is exact where e^x - 1 is not.
    "expm1": lambda x: _of_float("tanh")(x * 0.5) * (_of_float("exp")(x) + 1.0),
    "erfc": lambda x: 1.0 - _of_float("erf")(x),
    "tan": lambda x: _of_float("sin")(x) / _of_float("cos")(x),
    "square": lambda x: x * x,
    "reciprocal": lambda x: 1.0 / x,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    **dict.fromkeys(("rint", "round", "around"), round),
    **dict.fromkeys(("fabs", "absolute"), abs),
    "negative": operator.neg,
    "positive": operator.pos,
    "sign": lambda x: _emit("sign", _converted(x, "i") if x.kind == "b" else x),
    "isnan": lambda x: _emit("isnan", _converted(x, "f"), kind="b"),
    # An operator would hand a NumPy number on the left back to NumPy, and so end here again.
    "add": partial(arithmetic, "add"),
    "subtract": partial(arithmetic, "sub"),
    "multiply": partial(arithmetic, "mul"),
    **dict.fromkeys(("divide", "true_divide"), partial(arithmetic, "div", least="f")),
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    **dict.fromkeys(("pow", "power", "float_power"), _power),
    "minimum": partial(arithmetic, "min"),
    "maximum": partial(arithmetic, "max"),
    "clip": _clip,
    "where": where,
    "equal": partial(_compare, "eq"),
    "not_equal": lambda a, b: ~_compare("eq", a, b),
    "less": partial(_compare, "lt"),
    "less_equal": partial(_compare, "le"),
    "greater": lambda a, b: _compare("lt", b, a),
    "greater_equal": lambda a, b: _compare("le", b, a),
    **dict.fromkeys(("logical_and", "bitwise_and"), partial(_logical, "and")),
    **dict.fromkeys(("logical_or", "bitwise_or"), partial(_logical, "or")),
    **dict.fromkeys(("logical_xor", "bitwise_xor"), partial(_logical, "xor")),
    **dict.fromkeys(("logical_not", "invert"), operator.invert),
}
"""Functions of math and NumPy, and two of scipy.special, by name."""


def call(what: str, name: str, args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What the function ``name`` of math or NumPy is in instructions; ``what`` is for messages."""
    if name not in _FUNCTIONS:
        raise TraceError(f"{what} has no instruction; known are {', '.join(sorted(_FUNCTIONS))}")
    return _FUNCTIONS[name](*args, **keywords)
