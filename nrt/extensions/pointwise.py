"""A pointwise function of the user's own: a name, inputs, attributes, and programs on demand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nrt.dtypes import BOOL, FP32, DType
from nrt.errors import ExtensionError, GraphError
from nrt.extensions.rebind import rebound
from nrt.extensions.trace import Symbol, TraceError, trace
from nrt.ir.op import Array
from nrt.ir.ops.common import array_type, kind_of
from nrt.ir.ops.elementwise import Pointwise
from nrt.ir.pointwise import Program

__all__ = ["PointwiseFunction", "pointwise_function"]


@dataclass(frozen=True, eq=False)
class PointwiseFunction:
    """What `nrt.pointwise` returns.

    In a graph it is an `nrt.ir.ops.Pointwise` with the program that its function was traced to, so
    everything that fuses programs fuses it, and a plan holds no trace of Python. Called on arrays
    it computes what that program computes; called inside another traced function it is part of it.

    Attributes:
        name: as ONNX nodes call it, and `nrt.Network.apply`.
        domain: of those nodes; None: any, but for the names that nrt has in ai.onnx and
            com.microsoft.
        function: the user's.
        inputs: names of its inputs: its parameters without a default.
        attributes: names and defaults of its attributes: its parameters with one.
    """

    name: str
    domain: str | None
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    attributes: Mapping[str, bool | int | float | str]
    _rebound: Callable[..., Any] = field(repr=False)
    _programs: dict[Any, Program] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> str:
        """Its name in the registry."""
        return self.name if self.domain is None else f"{self.domain}::{self.name}"

    def __str__(self) -> str:
        return f"pointwise function {self.key!r}"

    def program(self, kinds: Sequence[str], **attributes: Any) -> Program:
        """The program for inputs of these kinds (``f``, ``i``, ``b``), traced on first use.

        Raises:
            GraphError: another number of inputs, an unknown attribute or one of another type.
            ExtensionError: the function cannot be traced; the message says why.
        """
        if len(kinds) != len(self.inputs):
            raise GraphError(
                f"{self}: got {len(kinds)} inputs, expected {len(self.inputs)} "
                f"({', '.join(self.inputs)})"
            )
        values = self._values(attributes)
        key = (tuple(kinds), tuple((n, type(v), v) for n, v in values.items()))
        if key not in self._programs:
            self._programs[key] = self._traced(kinds, values)
        return self._programs[key]

    def op(self, dtypes: Sequence[DType], **attributes: Any) -> Pointwise:
        """The op for inputs of these element types.

        Its output has the type of the first float among them, of the first integer where the
        function computes integers, and bool where it compares.
        """
        program = self.program([kind_of(d) for d in dtypes], **attributes)
        kind = program.kinds[program.outputs[0]]
        default = {"f": FP32, "i": dtypes[0], "b": BOOL}[kind]
        return Pointwise(program, next((d for d in dtypes if kind_of(d) == kind), default))

    def __call__(self, *values: Any, **attributes: Any) -> Any:
        """The function of arrays, which broadcast, by its program in NumPy."""
        if any(isinstance(v, Symbol) for v in values):
            return self._rebound(*values, **self._values(attributes))
        arrays: list[Array] = [np.asarray(v) for v in values]
        op = self.op([array_type(a).dtype for a in arrays], **attributes)
        return op.reference(*arrays)[0]

    def _values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(self.attributes))
        if unknown:
            raise GraphError(
                f"{self}: attribute {unknown[0]} is unknown; it has "
                f"{', '.join(self.attributes) or 'none'}"
            )
        values = {}
        for name, default in self.attributes.items():
            value = given.get(name, default)
            expected = type(default)
            # ONNX has no bool, and writes a float that is whole as an integer.
            if expected is bool and value in (0, 1):
                value = bool(value)
            elif expected is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if type(value) is not expected:
                raise GraphError(
                    f"{self}: attribute {name} is {value!r}, expected {expected.__name__} as its "
                    f"default {default!r}"
                )
            values[name] = value
        return values

    def _traced(self, kinds: Sequence[str], values: Mapping[str, Any]) -> Program:
        try:
            return trace(self._rebound, kinds, values)
        except (TraceError, GraphError) as error:
            raise ExtensionError(f"{self} ({_where(self.function)}): {error}") from error
        except Exception as error:
            # A user's function may raise anything; it stays the cause.
            raise ExtensionError(
                f"{self} ({_where(self.function)}): raised {type(error).__name__} while it was "
                f"traced: {error}"
            ) from error


def pointwise_function(
    name: str, function: Callable[..., Any], domain: str | None
) -> PointwiseFunction:
    """Check ``function`` and trace it once, for floats or else for conditions; registers nothing.

    Raises:
        ExtensionError: it is no function of single numbers, or cannot be traced.
    """
    label = f"pointwise function {name!r}"
    if not inspect.isfunction(function):
        raise ExtensionError(
            f"{label}: expected a Python function or a lambda, got {type(function).__name__}; "
            "wrap it: lambda x: f(x)"
        )
    inputs: list[str] = []
    attributes: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ExtensionError(
                f"{label}: parameter *{parameter.name} takes any number of inputs; name each one"
            )
        if parameter.default is not parameter.empty:
            if type(parameter.default) not in (bool, int, float, str):
                raise ExtensionError(
                    f"{label}: attribute {parameter.name} has the default {parameter.default!r}, "
                    "expected a bool, an int, a float or a str"
                )
            attributes[parameter.name] = parameter.default
        elif parameter.kind is parameter.KEYWORD_ONLY:
            raise ExtensionError(
                f"{label}: attribute {parameter.name} has no default; give it one, whose type is "
                "the attribute's"
            )
        else:
            inputs.append(parameter.name)
    if not inputs:
        raise ExtensionError(f"{label}: has no input; parameters without a default are inputs")
    found = PointwiseFunction(name, domain, function, tuple(inputs), attributes, rebound(function))
    try:
        found.program("f" * len(inputs))
    except ExtensionError:
        try:
            found.program("b" * len(inputs))  # a function of conditions
        except ExtensionError:
            pass
        else:
            return found
        raise
    return found


def _where(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
