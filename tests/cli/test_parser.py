"""The parser: commands, options, and errors of usage as one line with exit code 2."""

from __future__ import annotations

import pytest

from nrt import __version__
from nrt.cli import COMMANDS
from nrt.cli.parser import BUILD_OPTIONS, make_parser

from .support import Cli


def test_build_options_are_none_when_not_given() -> None:
    for line in (["build", "m", "-o", "p"], ["bench", "m"], ["inspect", "m"], ["compare", "m"]):
        args = make_parser().parse_args(line)
        assert [getattr(args, k) for k in BUILD_OPTIONS] == [None] * len(BUILD_OPTIONS)


def test_all_build_options() -> None:
    args = make_parser().parse_args(
        [
            *("build", "m", "-o", "p", "--target", "cpu", "--opt-level", "5"),
            *("--shapes", "a:1x2,b:3", "--shapes", "c:4", "--precision", "fp16,fp32"),
            *("--layers", "head*=fp32", "--layers", "stem=fp16", "--timing-cache", "t"),
            *("--accuracy", "sqnr:20", "--accuracy-data", "d"),
            *("--programmatic-launch", "off", "--streams", "2", "--memory-limit", "512 MiB"),
        ]
    )
    assert args.shapes == {"a": (1, 2), "b": (3,), "c": (4,)}
    assert args.precision == {"fp16", "fp32"}
    assert (args.target, args.opt_level, args.timing_cache) == ("cpu", 5, "t")
    assert args.layers == {"head*": "fp32", "stem": "fp16"}
    assert args.programmatic_launch == "off"
    assert (args.streams, args.memory_limit) == (2, 512 << 20)
    assert (args.accuracy, args.accuracy_data) == (("sqnr", 20.0), "d")


def test_defaults_of_the_others() -> None:
    bench = make_parser().parse_args(["bench", "m"])
    assert (bench.duration, bench.warm_up, bench.json) == (3.0, 0.2, False)
    run = make_parser().parse_args(["run", "p", "--input", "x=a.npy", "--input", "y=b.npy"])
    assert (run.inputs, run.output_dir, run.seed) == ([("x", "a.npy"), ("y", "b.npy")], None, 0)
    demo = make_parser().parse_args(["demo"])
    assert (demo.target, demo.precision, demo.opt_level, demo.batch) == (None, None, None, 1)


@pytest.mark.parametrize("line", [["--verbose", "doctor"], ["doctor", "--verbose"]])
def test_verbose_before_and_after_the_command(line: list[str]) -> None:
    assert make_parser().parse_args(line).verbose
    assert not make_parser().parse_args(["doctor"]).verbose


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli: Cli, name: str) -> None:
    result = cli(name, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: nrt {name}")


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"nrt {__version__}\n"
    text = cli("--help").out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "the following arguments are required: COMMAND (see 'nrt --help')"),
        (["biuld"], "invalid choice: 'biuld'"),
        (["build", "m"], "required: -o/--output (see 'nrt build --help')"),
        (["bench", "m", "--duration", "long"], "argument --duration: 'long': expected a number"),
        (["inspect", "m", "--shapes", "x"], "argument --shapes: 'x' is not a shape; expected"),
        (["inspect", "m", "--shapes", "x:1", "--shapes", "x:2"], "--shapes: 'x' is given twice"),
        (["inspect", "m", "--layers", "x"], "--layers: 'x': expected PATTERN=PRECISION"),
        (["inspect", "m", "--opt-level", "6"], "argument --opt-level: invalid choice: 6"),
        (["run", "p", "--input", "x"], "argument --input: 'x': expected NAME=FILE"),
        (["demo", "--batch", "0"], "argument --batch: '0': expected a whole number"),
    ],
)
def test_errors_of_usage(cli: Cli, line: list[str], message: str) -> None:
    result = cli(*line)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("nrt: error: ")
    assert message in result.err
    assert result.err.count("\n") == 1
