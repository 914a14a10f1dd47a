"""What a command works on: a plan or a model, told apart by the file's first bytes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nrt.cli.console import note, progress_bar
from nrt.cli.options import AUTO
from nrt.cli.parser import BUILD_OPTIONS, GRAPH_OPTIONS
from nrt.errors import BuildError, InputError, PlanError
from nrt.insight.inputs import check_inputs, random_inputs

if TYPE_CHECKING:
    from nrt.builder import Build
    from nrt.compiled import CompiledEngine
    from nrt.passes.base import PipelineReport
    from nrt.plan import IoSpec, Plan
    from nrt.runtime import Engine

__all__ = [
    "build_arguments",
    "build_engine",
    "build_plan",
    "build_report",
    "is_plan",
    "open_engine",
    "open_plan",
    "optimize_model",
    "read_inputs",
    "require_plan",
]

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def is_plan(path: str) -> bool:
    """Whether the file starts as plans do; its name does not count.

    Raises:
        OSError: it cannot be read.
    """
    from nrt.plan_file import MAGIC

    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def require_plan(path: str) -> None:
    """Raises PlanError when ``path`` is no plan; says how to make one."""
    if not is_plan(path):
        raise PlanError(
            f"{path} is not a plan; if it is a model, compile it first: "
            f"nrt build {path} -o {Path(path).with_suffix('.nrt').name}"
        )


def build_engine(model: Any, args: argparse.Namespace) -> CompiledEngine:
    """Compile ``model`` with the build options of ``args``, with a progress bar on a terminal."""
    from nrt.compiled import compile as compile_model

    with progress_bar() as progress:
        return compile_model(model, progress=progress, **build_arguments(args))


def build_report(model: str, args: argparse.Namespace) -> Build:
    """As `build_engine`, but stops at the plan: its device need not be in this machine."""
    from nrt.builder import build

    with progress_bar() as progress:
        return build(model, progress=progress, **build_arguments(args))


def build_plan(model: str, args: argparse.Namespace) -> Plan:
    """The plan of `build_report`."""
    return build_report(model, args).plan


def optimize_model(model: str, args: argparse.Namespace, *, snapshots: bool) -> PipelineReport:
    """Run the passes on ``model`` with the options of ``args`` that they see.

    Raises:
        BuildError: ``model`` is a plan, or options for kernels were given.
    """
    if is_plan(model):
        raise BuildError(f"{model} is a plan, which holds no graph; give the model")
    others = [k for k in _chosen(args) if k not in GRAPH_OPTIONS]
    if others:
        raise BuildError(
            f"{_flags(others)}: kernels are not chosen for a picture of the graph; leave it out"
        )
    from nrt.builder import optimize

    return optimize(model, snapshots=snapshots, **build_arguments(args))


def open_engine(path: str, args: argparse.Namespace) -> Engine:
    """Load a plan or compile a model.

    Raises:
        BuildError: build options were given for a plan.
    """
    if not is_plan(path):
        return build_engine(path, args)
    _refuse_build_options(path, args)
    from nrt import load

    return load(path)


def open_plan(path: str, args: argparse.Namespace) -> Plan:
    """The plan in ``path``, or of the model in it; a plan's device need not be present."""
    if not is_plan(path):
        return build_plan(path, args)
    _refuse_build_options(path, args)
    from nrt.plan_file import read_plan

    return read_plan(path)


def read_inputs(
    specs: Sequence[IoSpec], files: Sequence[tuple[str, str]], seed: int
) -> Mapping[str, np.ndarray[Any, np.dtype[Any]]]:
    """Inputs from ``.npy`` files; random ones, with a note, when no file is given.

    Raises:
        InputError: a file holds no plain array; a name is unknown, missing or given twice; shape or
            dtype do not fit.
    """
    if not files:
        note(f"no --input given: the inputs are random (seed {seed})")
        return random_inputs(specs, seed)
    arrays: Arrays = {}
    for name, path in files:
        if name in arrays:
            raise InputError(f"input {name!r} is given twice")
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"input {name!r}: {path} is not a .npy file: {error}") from error
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r}: {path} is an archive; expected one array (.npy)")
        arrays[name] = array
    check_inputs(specs, arrays)
    return arrays


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The build options that were given."""
    return {k: v for k in BUILD_OPTIONS if (v := getattr(args, k, None)) is not None}


def build_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """`build`'s keyword arguments for the build options that were given.

    Raises:
        BuildError: one name has an input's and an output's format, or there is an accuracy without
            data or data without an accuracy.
    """
    chosen = _chosen(args)
    wanted, folder = chosen.pop("accuracy", None), chosen.pop("accuracy_data", None)
    if (wanted is None) != (folder is None):
        have, lack = "--accuracy", "--accuracy-data"
        if wanted is None:
            have, lack = lack, have
        raise BuildError(
            f"{have} without {lack}: give both, such as --accuracy sqnr:20 --accuracy-data FOLDER"
        )
    if wanted is not None:
        from nrt.precision import AccuracyBudget

        metric, bound = wanted
        limit = {"sqnr": "at_least", "relative_error": "at_most"}[metric]
        chosen["accuracy"] = AccuracyBudget(metric, data=folder, **{limit: bound})
    launch = chosen.pop("programmatic_launch", "auto")
    if launch != "auto":
        chosen["programmatic"] = launch == "on"
    if chosen.get("streams") == AUTO:
        del chosen["streams"]
    given = {what: chosen.pop(f"{what}_format", {}) for what in ("input", "output")}
    if any(given.values()):
        from nrt.passes.bind_io import ONLY_INPUT, ONLY_OUTPUT, IOFormat

        both = sorted(given["input"].keys() & given["output"].keys() - {""})
        if both:
            raise BuildError(
                f"{both[0]!r} is given to --input-format and to --output-format; an input and an "
                "output cannot share a name: leave one out"
            )
        chosen["io"] = {
            name or stand_in: IOFormat(*parts)
            for what, stand_in in (("input", ONLY_INPUT), ("output", ONLY_OUTPUT))
            for name, parts in given[what].items()
        }
    return chosen


def _refuse_build_options(path: str, args: argparse.Namespace) -> None:
    given = _chosen(args)
    if given:
        raise BuildError(
            f"{_flags(given)}: {path} is a plan, compiled already; give the model, or leave the "
            "option out"
        )


def _flags(names: Iterable[str]) -> str:
    spelled = {"disabled": "disable"}
    return ", ".join("--" + spelled.get(n, n).replace("_", "-") for n in names)
