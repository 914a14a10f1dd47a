"""The interface of GPU kernels: what a variant solves and what it launches.

A `Variant` is one algorithm with its own configuration space. `supports` is the single truth about
what it can do: the heuristic, the tuner, the tests and `explain` all ask it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import isfunction
from typing import Any, ClassVar

from nrt.cuda_kernels.device import DeviceSpec
from nrt.errors import ExtensionError
from nrt.extensions.user_code import UserCode, user_code
from nrt.ir.op import Array, Op
from nrt.problem import Problem, Refusal

__all__ = [
    "Arg",
    "Emission",
    "In",
    "KernelSpec",
    "Launch",
    "Null",
    "Out",
    "Scalar",
    "TensorMap",
    "Variant",
    "Work",
]

Config = tuple[Any, ...]
"""A variant's configuration: a hashable tuple (or NamedTuple) of plain numbers and strings."""


@dataclass(frozen=True)
class KernelSpec:
    """A kernel to compile: equal specs are one binary.

    Attributes:
        factory: ``module:function`` inside `nrt.cuda_kernels`, which returns ``(kernel,
        signature)``:
            a Python function for Numba and its Numba signature (``types.void(...)``).
        params: hashable arguments of the factory; all that must be constant in the binary.
        threads: threads per block (for launch bounds).
        min_blocks: blocks per SM that the compiler must leave registers for.
        code: where a factory outside nrt comes from; see `of`.
        local: that factory itself, where no other process could import it.
        coherent: the kernel may write over what it reads: no load takes the path for memory that
            nobody writes (``ld.global.nc``).
    """

    factory: str
    params: tuple[Any, ...]
    threads: int
    min_blocks: int = 1
    code: UserCode | None = None
    coherent: bool = False
    local: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        factory: Callable[..., Any],
        params: tuple[Any, ...],
        threads: int,
        min_blocks: int = 1,
    ) -> KernelSpec:
        """A kernel of a user's own: ``factory`` is the function itself, of any module.

        Worker processes import its module from its file. What is defined in ``__main__``, in a
        notebook or inside another function is compiled in this process, one kernel at a time; a
        function that is defined anew makes another kernel.

        Raises:
            ExtensionError: ``factory`` is not a Python function.
        """
        if not isfunction(factory):
            raise ExtensionError(
                f"KernelSpec.of: expected a function, got {type(factory).__name__}; what it binds "
                "belongs into params"
            )
        name = f"{factory.__module__}:{factory.__qualname__}"
        code = user_code(factory)
        local = factory if code.file is None else None
        return cls(name, params, threads, min_blocks, code=code, local=local)


@dataclass(frozen=True)
class In:
    """Address of a problem's input, plus an offset in bytes."""

    slot: int
    offset: int = 0


@dataclass(frozen=True)
class Out:
    """Address of a problem's output, plus an offset in bytes."""

    slot: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Work:
    """Address inside the emission's workspace."""

    offset: int = 0


@dataclass(frozen=True)
class Null:
    """A null pointer, for parameters that this problem does not use."""


@dataclass(frozen=True)
class Scalar:
    """A number; ``ctype`` is ``u32``, ``i32``, ``u64``, ``i64`` or ``f32``."""

    value: int | float
    ctype: str = "u32"


@dataclass(frozen=True)
class TensorMap:
    """A tensor map over one of the addresses above (sm_90); fields as in nrt.plan.TensorMapArg."""

    of: In | Out | Work
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    swizzle: int = 128

    @property
    def nbytes(self) -> int:
        """Bytes from the first to the last element it covers, for 2-byte elements and others."""
        sizes = {"fp32": 4, "tf32": 4, "int32": 4, "fp16": 2, "bf16": 2}
        item = sizes.get(self.dtype, 1)
        last = sum((d - 1) * s for d, s in zip(self.dims[1:], self.strides, strict=True))
        return last + self.dims[0] * item


Arg = In | Out | Work | Null | Scalar | TensorMap


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: what to compile.
        grid: blocks in x, y, z.
        block: threads in x, y, z.
        args: one per parameter of the kernel.
        shared: bytes of dynamic shared memory.
        cluster: blocks per cluster in x, y, z (sm_90).
    """

    kernel: KernelSpec
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[Arg, ...]
    shared: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class Emission:
    """What a variant does for one problem: launches in order, and scratch memory in bytes."""

    launches: tuple[Launch, ...]
    workspace: int = 0


class Variant(ABC):
    """One algorithm for one family of problems.

    Class attributes:
        name: as reports, plans and `explain` show it (``conv_implicit_gemm_mma``).
        ops: the op classes that it solves.
        rank: simplicity; ties in time within noise go to the lower.
        reference: whether this is the family's reference, which must support every problem that any
            other variant does.
    """

    name: ClassVar[str]
    ops: ClassVar[tuple[type[Op], ...]]
    rank: ClassVar[int] = 10
    reference: ClassVar[bool] = False

    def __repr__(self) -> str:
        return self.name

    @abstractmethod
    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        """None, or why this variant cannot solve ``problem`` on ``device``."""

    @abstractmethod
    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        """Configurations for a supported problem, the one expected to be fastest first."""

    @abstractmethod
    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        """The launches that solve ``problem`` with ``config``."""

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        """Seconds that the analytic model expects; used to rank variants against each other."""
        del config
        return problem.nbytes / device.bandwidth + 2e-6

    def in_place(self, problem: Problem, config: Config) -> tuple[int, ...]:
        """Inputs over which an output may be written, if they lie as it does.

        Of such an input every element must be read by the thread that writes the output's element
        in its place, and before it writes any; what other threads read there must not count.
        """
        del problem, config
        return ()

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """The bytes to keep on the device for constant input ``slot``.

        ``array`` has the input's logical shape and dtype, row-major. The default keeps it so; a
        variant that reads a constant in another order returns that order, padded as it likes.
        """
        del problem, config, slot
        return array
