"""An execution context: the memory that one run at a time needs, and the calls that use it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from nrt.errors import ContextBusyError, InputError
from nrt.plan import IoSpec, Plan
from nrt.runtime.arrays import check_names, index_of, pair
from nrt.runtime.gpu import CudaProgram, CudaRunner, Ticket
from nrt.runtime.host import HostProgram, HostRunner

__all__ = ["Context", "Pending"]


class Pending:
    """A run that `Context.enqueue` started."""

    def __init__(self, context: Context, results: Any) -> None:
        self._context = context
        self._results = results

    def result(self, *, device: bool = False) -> dict[str, Any]:
        """Its outputs by name; waits for them unless ``device``.

        They stay those of this run, whatever was enqueued after it.

        Raises:
            ContextBusyError: another thread is inside the context.
        """
        return self._context._collect(self._results, device)


class Context:
    """Runs a plan, one call at a time; made by `Engine.create_context`.

    Contexts of one engine share weights and kernels and may run in different threads at once. Calls
    on one context from two threads at once are refused, not queued.

    Attributes:
        inputs, outputs: the plan's bindings.
    """

    def __init__(self, plan: Plan, program: HostProgram | CudaProgram) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._runner: HostRunner | CudaRunner = program.runner()
        self.inputs: tuple[IoSpec, ...] = plan.inputs
        self.outputs: tuple[IoSpec, ...] = plan.outputs

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise ContextBusyError(
                f"the context of plan {self._plan.name!r} is in use by another thread; give each "
                "thread its own with engine.create_context(), or call the engine, which queues"
            )
        try:
            yield
        finally:
            self._lock.release()

    def run(self, inputs: Mapping[str, Any], *, device: bool = False) -> dict[str, Any]:
        """Run on inputs by name.

        Args:
            inputs: NumPy arrays, or (also in device memory, on the CUDA target) DLPack objects and
                objects with ``__cuda_array_interface__``. Shapes and dtypes are the plan's; nothing
                is cast. Shapes are logical in either layout; host arrays may have any strides,
                device memory must be dense in the binding's layout.
            device: return `DeviceTensor` instead of NumPy arrays (CUDA target only).

        Returns:
            Output name -> fresh array; a later run never writes to it.

        Raises:
            InputError: a name, shape or dtype is wrong, or ``device`` on the CPU target.
            ContextBusyError: another thread is inside this context.
            DeviceError: a CUDA call failed.
        """
        with self._alone():
            return self._named(self._run(inputs, device))

    def _run(self, inputs: Mapping[str, Any], device: bool) -> list[Any]:
        check_names(self.inputs, inputs)
        values = [inputs[spec.name] for spec in self.inputs]
        if isinstance(self._runner, CudaRunner):
            return self._runner.run(values, device)
        self._refuse(device)
        return self._runner.run(values)

    def __call__(self, *inputs: Any, device: bool = False) -> Any:
        """`run` on inputs in the plan's order; the output, or a tuple of them if there are several.

        Raises:
            InputError, ContextBusyError, DeviceError: as `run`.
        """
        values = pair(self.inputs, inputs)
        with self._alone():
            outputs = self._run(values, device)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def set_input(self, name: str, value: Any) -> None:
        """Bind an input for the runs to come; its transfer starts now.

        Raises:
            InputError: the name, shape or dtype is wrong.
            ContextBusyError: another thread is inside this context.
        """
        with self._alone():
            self._runner.set_input(index_of("input", self.inputs, name), value)

    def enqueue(self, stream: Any = None) -> Pending:
        """Start a run on what is bound and return without waiting (the CPU target runs it now).

        Inputs of the next run may be bound at once: their transfer goes on while this run computes.

        Args:
            stream: a CUDA stream of the caller's to compute on: an address, a PyTorch stream or an
                object with ``__cuda_stream__``. Default: the context's own.

        Raises:
            InputError: an input was never bound.
            ContextBusyError: another thread is inside this context.
            DeviceError: a CUDA call failed.
        """
        with self._alone():
            return Pending(self, self._runner.enqueue(stream))

    def output(self, name: str, *, device: bool = False) -> Any:
        """An output of the last `enqueue`, as a fresh array; waits for it unless ``device``.

        Raises:
            InputError: there is no such output, or nothing was enqueued.
            ContextBusyError: another thread is inside this context.
        """
        index = index_of("output", self.outputs, name)
        with self._alone():
            results = self._runner.results
            if results is None:
                raise InputError(f"output {name!r}: nothing was enqueued yet; call enqueue() first")
            return self._fetch(results, device)[index]

    def synchronize(self) -> None:
        """Wait until everything that was enqueued is done.

        Raises:
            DeviceError: a kernel failed.
        """
        with self._alone():
            if isinstance(self._runner, CudaRunner):
                self._runner.synchronize()

    def device_seconds(self, repeats: int = 20) -> list[float] | None:
        """Device time of ``repeats`` graph replays, without transfers; None on the CPU target."""
        with self._alone():
            if isinstance(self._runner, CudaRunner):
                return self._runner.device_seconds(repeats)
            return None

    def step_seconds(self, inputs: Mapping[str, Any], repeats: int = 10) -> list[list[float]]:
        """Seconds of each of the plan's steps, ``repeats`` times; each step is timed alone.

        Device time on the CUDA target, where launches are replayed from a graph of their own and do
        not overlap; host time on the CPU's. Forks and joins take 0.

        Raises:
            InputError: a name, shape or dtype is wrong.
            ContextBusyError: another thread is inside this context.
            DeviceError: a CUDA call failed.
        """
        with self._alone():
            check_names(self.inputs, inputs)
            values = [inputs[spec.name] for spec in self.inputs]
            return self._runner.step_seconds(values, repeats)

    def layer_seconds(self, inputs: Mapping[str, Any], repeats: int = 10) -> list[float]:
        """Time of each of the plan's layers: the sum over its steps of their medians.

        Raises:
            InputError, ContextBusyError, DeviceError: as `step_seconds`.
        """
        layers = [0.0] * len(self._plan.layers)
        seconds = self.step_seconds(inputs, repeats)
        for step, samples in zip(self._plan.steps, seconds, strict=True):
            layer = getattr(step, "layer", None)  # forks and joins belong to none
            if layer is not None:
                layers[layer] += median(samples)
        return layers

    def _collect(self, results: Any, device: bool) -> dict[str, Any]:
        with self._alone():
            return self._named(self._fetch(results, device))

    def _fetch(self, results: Any, device: bool) -> list[Any]:
        if isinstance(self._runner, CudaRunner):
            assert isinstance(results, Ticket)
            return self._runner.outputs(results, device)
        self._refuse(device)
        return [array.copy(order="K") for array in results]

    def _refuse(self, device: bool) -> None:
        if device:
            raise InputError(
                f"plan {self._plan.name!r} is for the CPU: device=True needs a CUDA plan"
            )

    def _named(self, outputs: list[Any]) -> dict[str, Any]:
        return {spec.name: value for spec, value in zip(self.outputs, outputs, strict=True)}
