"""What users call to extend nrt at run time: an op, a pointwise function, a kernel, a plug-in.

::

    relu6 = nrt.pointwise("ReLU6", lambda x: min(max(x, 0), 6))

    @nrt.op("my.domain", "Clip6")
    class Clip6(nrt.Op): ...

    @nrt.variant("Softmax")
    class MySoftmax(HostVariant): ...

All of them put something into `nrt.registry` and nothing else anywhere.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, dataclass_transform, overload

from nrt.cpu_kernels.variant import HostVariant
from nrt.cuda_kernels.variant import Variant
from nrt.errors import BuildError, CompileError, ExtensionError, NrtError
from nrt.extensions.ops import register_op
from nrt.extensions.pointwise import PointwiseFunction, pointwise_function
from nrt.extensions.registry import Definition, registry
from nrt.extensions.user_code import load_file, user_code
from nrt.frontend.onnx_table import canonical_domain, is_built_in
from nrt.ir.op import Op
from nrt.ir.ops import OPS, Elementwise

__all__ = ["load_plugin", "op", "pointwise", "variant"]

OpType = TypeVar("OpType", bound=type[Op])
VariantType = TypeVar("VariantType", bound=type[Variant] | type[HostVariant])
Function = Callable[..., Any]

_METHODS = ("supports", "configs", "estimate", "emit", "pack", "workspace", "bind")


@dataclass_transform(frozen_default=True)
def op(domain: str, name: str) -> Callable[[OpType], OpType]:
    """Register an op: ONNX nodes ``domain::name`` are imported as it, and plans may hold it.

    The decorated class derives from `nrt.Op`, or from `nrt.ir.ops.Elementwise` where a pointwise
    program says what it computes. Its annotated fields are the ONNX attributes (it becomes a frozen
    dataclass). ``infer`` gives the types of the outputs, ``reference`` computes them with NumPy:
    that folds constants, and runs on the CPU. A GPU needs a kernel (`variant`) or a program. Its
    floats are fp32 in a plan, unless ``precisions`` names more types that it computes in.

    Raises:
        ExtensionError: the class lacks a method, has an attribute that no plan can store, or the
            name is taken, by nrt or by another definition.
    """
    domain = canonical_domain(domain)
    _refuse_built_in("op", domain, name)
    if registry.pointwise.get(f"{domain}::{name}") is not None:
        raise ExtensionError(f"op {domain}::{name}: a pointwise function is registered as that")
    return lambda cls: register_op(cls, domain, name)


@overload
def pointwise(name: str, function: Function, *, domain: str | None = None) -> PointwiseFunction: ...
@overload
def pointwise(
    name: str, function: None = None, *, domain: str | None = None
) -> Callable[[Function], PointwiseFunction]: ...
def pointwise(
    name: str, function: Function | None = None, *, domain: str | None = None
) -> PointwiseFunction | Callable[[Function], PointwiseFunction]:
    """Register a function of single numbers; it fuses wherever nrt's own elementwise ops do.

    ``nrt.pointwise("Scale", lambda x, y, alpha=0.5: alpha * x + y)``: parameters without a default
    are inputs, which broadcast, those with one are ONNX attributes. The function is traced into a
    pointwise program: operators, ``min``, ``max``, ``abs``, functions of ``math`` and NumPy, and
    `nrt.where` in place of conditions. A plan holds that program, never the function.

    Args:
        name: of ONNX nodes, and for `nrt.Network.apply`.
        function: what to trace; left out, the call is a decorator.
        domain: of those nodes; None: any that nrt itself has no op of this name in.

    Raises:
        ExtensionError: the function cannot be traced (the message says why and where), or the name
            is taken, by nrt or by another definition.
    """
    if function is None:
        return lambda f: pointwise(name, f, domain=domain)
    if domain is not None:
        domain = canonical_domain(domain)
        if registry.op(domain, name) is not None:
            raise ExtensionError(
                f"pointwise function {domain}::{name}: an op is registered as that"
            )
    _refuse_built_in("pointwise function", domain or "", name)
    found = pointwise_function(name, function, domain)
    registry.pointwise.add(found.key, found, Definition.of(function))
    return found


def variant(family: str | type[Op]) -> Callable[[VariantType], VariantType]:
    """Register a kernel for one family of problems: it is checked, timed, and chosen if it wins.

    The decorated class derives from `nrt.cuda_kernels.variant.Variant` or, for the CPU target, from
    `nrt.cpu_kernels.HostVariant`. A wrong result is reported under its name and never chosen. Where
    nothing is measured (``opt_level=0``, or a GPU that is not here) it is used only if no built-in
    kernel solves the problem.

    A CUDA plan holds the compiled kernel. A CPU plan names the variant, which must be registered in
    the process that loads it.

    Args:
        family: the op that it solves: a name or class of `nrt.ir.ops`, or a registered op.

    Raises:
        ExtensionError: there is no such family, the class is no variant or lacks a method, or its
            name is taken, by nrt or by another definition.
    """
    if registry.compiling:
        return lambda cls: cls
    solved = _family(family)
    return lambda cls: _register_variant(cls, solved)


def load_plugin(path: str | Path) -> ModuleType:
    """Run a Python file that registers things, once per process.

    Raises:
        ExtensionError: there is no such file, or it raised; the error is the cause.
    """
    file = Path(path).resolve()
    if file.suffix != ".py" or not file.is_file():
        raise ExtensionError(f"plug-in {path}: expected the path of a Python file (.py)")
    name = file.stem if file.stem.isidentifier() else "plugin"
    for known in (name, f"{name}_{sha256(str(file).encode()).hexdigest()[:8]}"):
        module = sys.modules.get(known)
        if module is None:
            try:
                return load_file(file, known)
            except CompileError as error:
                raise ExtensionError(f"plug-in {error}") from error.__cause__
        if getattr(module, "__file__", None) and Path(str(module.__file__)).resolve() == file:
            return module
    raise ExtensionError(f"plug-in {path}: a module of its name is loaded from another file")


def _refuse_built_in(what: str, domain: str, name: str) -> None:
    if is_built_in(domain, name):
        raise ExtensionError(
            f"{what} {name!r}: nrt imports {name} of {domain or 'ai.onnx'} itself; choose another "
            "name, or a domain of your own"
        )


def _family(family: str | type[Op]) -> type[Op]:
    known = {kind.table_name(): kind for kind in (*OPS, *registry.ops.values)}
    if isinstance(family, type) and issubclass(family, Op):
        name = family.table_name()
    else:
        name = str(family)
    found = known.get(name)
    if found is None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ExtensionError(
            f"variant: there is no op {name!r}; {hint}expected a class or name of nrt.ir.ops, or "
            "an op that was registered before (nrt.op)"
        )
    if found.registered_as is not None and issubclass(found, Elementwise):
        raise ExtensionError(
            f"variant: {name} has a pointwise program, which is fused with others; register the "
            "variant for 'Pointwise', or derive the op from nrt.Op"
        )
    return found


def _register_variant(cls: VariantType, op: type[Op]) -> VariantType:
    if not (isinstance(cls, type) and issubclass(cls, Variant | HostVariant)):
        raise ExtensionError(
            f"variant: expected a class that derives from nrt.cuda_kernels.variant.Variant or "
            f"nrt.cpu_kernels.HostVariant, got {cls!r}"
        )
    host = issubclass(cls, HostVariant)
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise ExtensionError(f"variant {cls.__name__}: has no name; set name = 'my_kernel' in it")
    if inspect.isabstract(cls):
        missing = ", ".join(f"{m}()" for m in sorted(cls.__abstractmethods__))
        raise ExtensionError(f"variant {name!r}: lacks {missing}")
    if cls.reference:
        raise ExtensionError(
            f"variant {name!r}: reference = True, but nrt checks it against a reference of its "
            "own; leave it out"
        )
    if host:
        from nrt.cpu_kernels import VARIANTS as BUILT_IN
    else:
        from nrt.cuda_kernels.registry import VARIANTS as BUILT_IN  # type: ignore[assignment]
    if name in [v.name for v in BUILT_IN]:
        raise ExtensionError(f"variant {name!r}: is the name of one of nrt's own; choose another")
    changed: Any = cls
    if "ops" not in vars(cls):
        changed.ops = (op,)
    for method in _METHODS:
        if method in vars(cls):
            setattr(cls, method, _named(vars(cls)[method], method, name))
    table = registry.host_variants if host else registry.cuda_variants
    try:
        instance = cls()
    except TypeError as error:
        raise ExtensionError(
            f"variant {name!r}: cannot be made without arguments: {error}"
        ) from error
    table.add(name, instance, Definition.of(cls))
    user_code(cls)  # reads the source now, as it was imported
    return cls


def _named(function: Function, method: str, name: str) -> Function:
    """``function``, with whatever it raises under the names of the variant and the method."""

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except NrtError:
            raise
        except Exception as error:
            # A user's code may raise anything; it stays the cause.
            raise BuildError(
                f"variant {name!r}: {method} raised {type(error).__name__}: {error}"
            ) from error

    return call
