"""ablate(): what each pass is worth, measured by building the network with it and without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nrt.builder import Build, build, build_request
from nrt.errors import BuildError
from nrt.insight.ablation import Ablation, PassEffect
from nrt.insight.figures import (
    Figures,
    Reference,
    launches_of,
    open_engine,
    require_device,
    same_program,
)
from nrt.insight.paired import Estimate, Stopwatch, estimate, interleave
from nrt.passes.pipeline import (
    PipelineOptions,
    check_names,
    pass_names,
    pipeline,
    required_passes,
)
from nrt.runtime.timing import measure
from nrt.tuner import Progress

__all__ = ["ablate"]

_NOTHING = Estimate(0.0, 0.0, 0.0)


def ablate(
    model: Any,
    passes: str | Iterable[str] = "all",
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | Iterable[str] = "fp32",
    target: str = "auto",
    cumulative: bool = False,
    duration: float = 3.0,
    warm_up: float = 0.2,
    progress: Progress | None = None,
    **options: Any,
) -> Ablation:
    """Build ``model`` with all passes and without each of ``passes``, and measure them in turns.

    All builds share one timing cache, so that only problems that a pass makes or takes away are
    tuned anew. A plan that is the same without a pass, byte for byte, is not measured again. Full
    tuning is meant: with ``tuning_seconds``, later builds know more times than the first.

    Args:
        model: as of `nrt.compile`.
        passes: names, or ``"all"``: all that may be left out.
        shapes, precision, target: as of `nrt.compile`.
        cumulative: also start without any of the passes and add one at a time, in the order of the
            pipeline.
        duration: seconds to measure the full network for, and then each pair of networks.
        warm_up: seconds to run each network before.
        progress: called with (stage, done, total).
        options: others of `nrt.builder.build`.

    Raises:
        BuildError: a pass is unknown, required or left out already; or the model cannot be built.
        DeviceError: the device is not in this machine.
        InputError: ``duration`` or ``warm_up`` is negative.
    """
    wanted = pass_names() if passes == "all" else tuple(sorted(_names(passes)))
    asked = PipelineOptions(
        precision=_names(precision),
        layers=options.get("layers") or {},
        io=options.get("io") or {},
        disabled=_names(options.get("disabled", ())),
    )
    required = required_passes(pipeline(asked))
    names = _removable(wanted, passes != "all", asked.disabled, required)
    require_device(target)
    made = {"shapes": shapes, "precision": precision, "target": target, **options}
    full = build(model, progress=progress, **made)
    study = _Study(full, duration, warm_up, progress, total=len(names) * (1 + cumulative))
    effects = tuple(study.left_out(name) for name in names)
    bare, steps = study.added(names) if cumulative else (None, ())
    plan = full.plan
    return Ablation(
        name=plan.name,
        target=plan.target.kind,
        device=plan.target.device or plan.target.arch,
        precision=tuple(sorted(full.request.precision)),
        full=study.full.figures,
        effects=effects,
        bare=bare,
        steps=steps,
        required={name: reason for name, reason in required.items() if name in wanted},
    )


def _names(given: str | Iterable[str]) -> frozenset[str]:
    return frozenset([given] if isinstance(given, str) else given)


def _removable(
    wanted: Sequence[str], by_name: bool, off: frozenset[str], required: Mapping[str, str]
) -> list[str]:
    """``wanted`` in the order of the pipeline."""
    check_names(wanted)
    for name in wanted if by_name else ():
        if name in required:
            raise BuildError(f"pass '{name}' cannot be left out: {required[name]}")
        if name in off:
            raise BuildError(f"pass '{name}' is left out already: it is among disabled=")
    return [n for n in pass_names() if n in wanted and n not in required and n not in off]


@dataclass(frozen=True)
class _Subject:
    """One network: its build, its engine, warm, and what is known of it."""

    build: Build
    watch: Stopwatch
    figures: Figures


class _Study:
    """The full network, kept on the device, and others that come and go."""

    def __init__(
        self,
        full: Build,
        duration: float,
        warm_up: float,
        progress: Progress | None,
        total: int,
    ) -> None:
        self.duration = duration
        self.warm_up = warm_up
        self.progress = progress
        self.done, self.total = 0, total
        self.reference = Reference(full.request.graph, full.plan)
        opened = self._subject(full)
        # Alone, as `nrt bench` does.
        found = measure(opened.watch.context, duration, warm_up)
        device = found.device_seconds
        latency = estimate(found.host_seconds if device is None else device)
        self.full = replace(opened, figures=replace(opened.figures, latency=latency))

    def left_out(self, name: str) -> PassEffect:
        """The network without pass ``name``, beside the full one."""
        self._report()
        fired = _fired(self.full.build, name)
        if not any(r.changed for r in self.full.build.passes.records if r.name == name):
            return _identical(name, fired, self.full.figures)
        return self._beside_full(name, fired, self._build({name}))[1]

    def _beside_full(self, name: str, fired: int, made: Build) -> tuple[_Subject, PassEffect]:
        full = self.full
        if same_program(made.plan, full.build.plan):
            return full, _identical(name, fired, full.figures)
        other = self._subject(made)
        pair = interleave(full.watch, other.watch, self.duration)
        figures = replace(other.figures, latency=pair.second)
        effect = PassEffect(name, fired, figures, pair.first, pair.difference)
        return replace(other, figures=figures), effect

    def added(self, names: Sequence[str]) -> tuple[PassEffect, tuple[PassEffect, ...]]:
        """The network without any of ``names``, and then with one more at a time."""
        last, bare = self._beside_full("none of them", 0, self._build(set(names)))
        steps = []
        for index, name in enumerate(names):
            self._report()
            rest = set(names[index + 1 :])
            made = self._build(rest) if rest else self.full.build
            fired = _fired(made, name)
            if same_program(made.plan, last.build.plan):
                steps.append(_identical(name, fired, last.figures))
                continue
            now = self._subject(made) if rest else self.full
            pair = interleave(now.watch, last.watch, self.duration)
            now = replace(now, figures=replace(now.figures, latency=pair.first))
            steps.append(PassEffect(name, fired, now.figures, pair.second, pair.difference))
            last = now
        return bare, tuple(steps)

    def _build(self, without: set[str]) -> Build:
        request = self.full.build.request
        return build_request(
            replace(request, disabled=request.disabled | without), progress=self.progress
        )

    def _subject(self, made: Build) -> _Subject:
        """Open it, check it and warm it up; its latency is yet to be measured."""
        context = open_engine(made.plan).create_context()
        error = self.reference.error(context)
        watch = Stopwatch(context, self.warm_up)
        figures = Figures(_NOTHING, launches_of(made.plan), made.plan.arena_bytes, error)
        return _Subject(made, watch, figures)

    def _report(self) -> None:
        if self.progress is not None:
            self.progress("ablate", self.done, self.total)
        self.done += 1


def _fired(made: Build, name: str) -> int:
    """Rewrites: a pass that changes nothing may still say what it found."""
    records = (r for r in made.passes.records if r.name == name and r.changed)
    return len({note for r in records for note in r.notes if note.kind == "fired"})


def _identical(name: str, fired: int, figures: Figures) -> PassEffect:
    return PassEffect(name, fired, figures, figures.latency, _NOTHING, identical=True)
