"""The interface of host kernels: the CPU target's variants.

A host variant is one algorithm too; `bind` turns a problem and a configuration into a Python
callable. A plan stores the variant's name, the problem and the configuration as plain data, never
code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from nrt.ir.op import Array, Op
from nrt.problem import Problem, Refusal

__all__ = ["Config", "HostCall", "HostVariant"]

Config = tuple[Any, ...]
"""Plain numbers and strings."""

HostCall = Callable[[Sequence[Array], Sequence[Array], Array], None]
"""``call(inputs, outputs, workspace)``: strided NumPy arrays with the problem's logical shapes;
``workspace`` is a uint8 array, 64-byte aligned, of `HostVariant.workspace` bytes."""


class HostVariant(ABC):
    """One algorithm on the host for one family of problems.

    Class attributes:
        name: as reports and plans show it (``cpu_conv_im2col``).
        ops: op classes it solves.
        rank: simplicity; ties in time within noise go to the lower.
        reference: whether this is the family's reference.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[type[Op], ...]]
    rank: ClassVar[int] = 10
    reference: ClassVar[bool] = False

    def __repr__(self) -> str:
        return self.name

    @abstractmethod
    def supports(self, problem: Problem) -> Refusal | None:
        """None, or why this variant cannot solve ``problem``."""

    def configs(self, problem: Problem) -> Sequence[Config]:
        """Configurations for a supported problem, the one expected to be fastest first."""
        del problem
        return ((),)

    def workspace(self, problem: Problem, config: Config) -> int:
        """Bytes of scratch memory."""
        del problem, config
        return 0

    def in_place(self, problem: Problem, config: Config) -> tuple[int, ...]:
        """Inputs over which the output may be written, if they lie as it does."""
        del problem, config
        return ()

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """What to store for constant input ``slot``; ``array`` is row-major, logical shape.

        The plan keeps the result's bytes; `bind`'s call then receives for that slot an array with
        the packed shape and dtype.
        """
        del problem, config, slot
        return array

    @abstractmethod
    def bind(self, problem: Problem, config: Config) -> HostCall:
        """The callable that solves ``problem``; compiles what it needs."""
