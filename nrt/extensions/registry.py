"""What users added at run time: ops, pointwise functions, kernels.

The built-in tables are tuples that no one changes. `registry` is beside them: it is filled by
explicit calls of a user's own code (`nrt.op`, `nrt.pointwise`, `nrt.variant`), never by importing a
part of nrt. A name stands for one definition. Running the same definition again replaces it, so
that a notebook's cell can be edited and run again; another definition of the name is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nrt.errors import ExtensionError

if TYPE_CHECKING:
    from nrt.extensions.pointwise import PointwiseFunction
    from nrt.ir.op import Op

__all__ = ["Definition", "Registry", "Table", "registry"]

T = TypeVar("T")


@dataclass(frozen=True)
class Definition:
    """Where a registered thing was defined.

    Attributes:
        name: module and qualified name; equal names are one definition, run again.
        where: file and line, for messages.
    """

    name: str
    where: str

    @classmethod
    def of(cls, thing: Any) -> Definition:
        """The definition of a function or a class."""
        code = getattr(thing, "__code__", None)
        name = f"{thing.__module__}.{thing.__qualname__}"
        return cls(name, f"{code.co_filename}:{code.co_firstlineno}" if code else name)


class Table(Generic[T]):
    """Things of one kind by name, in the order in which they were registered.

    Args:
        what: the kind, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, tuple[Definition, T]] = {}

    def add(self, name: str, value: T, definition: Definition) -> None:
        """Register ``value``, or replace it where its definition was run again.

        Raises:
            ExtensionError: another definition has the name.
        """
        known = self._entries.get(name)
        if known is not None and known[0].name != definition.name:
            raise ExtensionError(
                f"{self.what} {name!r} is registered already, by {known[0].where}, and now again "
                f"by {definition.where}; choose another name, or nrt.registry.clear() first"
            )
        self._entries[name] = (definition, value)

    def get(self, name: str) -> T | None:
        entry = self._entries.get(name)
        return entry[1] if entry is not None else None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def values(self) -> tuple[T, ...]:
        return tuple(value for _, value in self._entries.values())

    def clear(self) -> None:
        self._entries.clear()


class Registry:
    """Everything that users registered in this process.

    Attributes:
        ops: by ``domain::name``.
        pointwise: by ``domain::name``, or by name alone where any domain will do.
        cuda_variants: instances of `nrt.cuda_kernels.variant.Variant`, by name.
        host_variants: instances of `nrt.cpu_kernels.variant.HostVariant`, by name.
        compiling: whether the process is a compile worker. It imports a user's file for a kernel's
            sake: variants in it, whose ops may be of other files, are of no use there.
    """

    def __init__(self) -> None:
        self.ops: Table[type[Op]] = Table("op")
        self.pointwise: Table[PointwiseFunction] = Table("pointwise function")
        self.cuda_variants: Table[Any] = Table("variant")
        self.host_variants: Table[Any] = Table("variant")
        self.compiling = False

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        return (self.ops, self.pointwise, self.cuda_variants, self.host_variants)

    def op(self, domain: str, name: str) -> type[Op] | None:
        """The op that an ONNX node of ``domain`` (canonical) called ``name`` stands for."""
        return self.ops.get(f"{domain}::{name}")

    def pointwise_function(self, domain: str, name: str) -> PointwiseFunction | None:
        """The function that an ONNX node of ``domain`` (canonical) called ``name`` stands for."""
        return self.pointwise.get(f"{domain}::{name}") or self.pointwise.get(name)

    def knows(self, domain: str, name: str) -> bool:
        """Whether such an ONNX node can be imported."""
        return (self.op(domain, name) or self.pointwise_function(domain, name)) is not None

    def is_users(self, variant: Any) -> bool:
        """Whether a kernel variant is a user's own."""
        return any(v is variant for v in (*self.cuda_variants.values, *self.host_variants.values))

    def clear(self) -> None:
        """Forget everything."""
        for table in self.tables:
            table.clear()

    @contextmanager
    def scope(self) -> Iterator[Registry]:
        """What is registered inside is forgotten at the end, and what was there before is back."""
        before = [dict(table._entries) for table in self.tables]
        try:
            yield self
        finally:
            for table, entries in zip(self.tables, before, strict=True):
                table._entries = entries

    def __str__(self) -> str:
        lines = [f"{table.what}s: {', '.join(table.names)}" for table in self.tables if table.names]
        return "\n".join(lines) or "nothing is registered"


registry = Registry()
"""The registry of this process."""
