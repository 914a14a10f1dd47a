"""The argument parser: every command with its options."""

from __future__ import annotations

import argparse
from typing import NoReturn

from nrt import __version__
from nrt.cli import options

__all__ = ["BUILD_OPTIONS", "GRAPH_OPTIONS", "PICTURE_OPTIONS", "make_parser"]

GRAPH_OPTIONS = (
    "shapes",
    "precision",
    "layers",
    "calibration",
    "input_format",
    "output_format",
    "disabled",
)
"""Options that the passes see; None when they were not given."""

BUILD_OPTIONS = (
    *GRAPH_OPTIONS,
    "target",
    "opt_level",
    "accuracy",
    "accuracy_data",
    "tuning_seconds",
    "timing_cache",
    "programmatic_launch",
    "streams",
    "memory_limit",
)
"""Options that say how a model is compiled; None when they were not given."""


PICTURE_OPTIONS = ("svg", "dot", "mermaid")
"""Files of `nrt inspect` to write the graph to; None when they were not given."""


class _Parser(argparse.ArgumentParser):
    """Errors in the form of all the others: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"nrt: error: {message} (see '{self.prog} --help')\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser; ``args.command`` names the command."""
    parser = _Parser(
        prog="nrt", description="Compile trained networks into measured plans and run them."
    )
    parser.add_argument("--version", action="version", version=f"nrt {__version__}")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        # SUPPRESS: a default here would overwrite `nrt --verbose COMMAND`.
        made.add_argument(
            "--verbose",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        return made

    build = command("build", "Compile a model and write its plan.")
    build.add_argument("model", metavar="MODEL", help="an ONNX file")
    build.add_argument("-o", "--output", metavar="PLAN", required=True, help="the plan to write")
    _build_options(build)

    run = command("run", "Run a plan once.")
    run.add_argument("plan", metavar="PLAN", help="a plan that `nrt build` wrote")
    _input_options(run)
    _plugin_option(run)
    run.add_argument("--output-dir", metavar="DIR", help="write each output to DIR/NAME.npy")

    bench = command("bench", "Measure throughput and latency.")
    bench.add_argument("source", metavar="PLAN|MODEL", help="a plan, or an ONNX file to compile")
    bench.add_argument(
        "--duration",
        type=options.seconds,
        default=3.0,
        metavar="S",
        help="measure for S seconds (3)",
    )
    bench.add_argument(
        "--warm-up", type=options.seconds, default=0.2, metavar="S", help="run first for S (0.2)"
    )
    _json_option(bench)
    _build_options(bench)

    inspect = command("inspect", "Show what a model was compiled to, launch by launch.")
    inspect.add_argument("source", metavar="PLAN|MODEL", help="a plan, or an ONNX file to compile")
    inspect.add_argument(
        "--candidates",
        action="store_true",
        help="show what each layer's kernel was chosen from (MODEL only)",
    )
    inspect.add_argument(
        "--onnx",
        metavar="FILE",
        help="also write the optimized graph as an ONNX model, kernels as metadata (MODEL only)",
    )
    for name, language in zip(PICTURE_OPTIONS, ("SVG", "DOT", "Mermaid"), strict=True):
        inspect.add_argument(
            f"--{name}",
            metavar="FILE",
            help=f"instead, write the optimized graph as {language}; compiles no kernel "
            "(MODEL only)",
        )
    _json_option(inspect)
    _build_options(inspect)

    diff = command("diff", "Show what the passes did to a model's graph between two stages.")
    diff.add_argument("model", metavar="MODEL", help="an ONNX file")
    diff.add_argument(
        "--before", default="imported", metavar="STAGE", help="'imported' (default) or a pass"
    )
    diff.add_argument(
        "--after", default="final", metavar="STAGE", help="a pass, or 'final' (default)"
    )
    diff.add_argument("--svg", metavar="FILE", help="write both graphs side by side")
    _json_option(diff)
    _plugin_option(diff)
    _graph_options(diff.add_argument_group("what the passes see"))

    explain = command("explain", "Show why a layer is what it is: rewrites, refusals, candidates.")
    explain.add_argument("source", metavar="MODEL|PLAN", help="an ONNX file to compile, or a plan")
    explain.add_argument(
        "layer",
        metavar="LAYER",
        help="a layer, a node of the model, the end of such a name, or a pattern",
    )
    _json_option(explain)
    _build_options(explain)

    profile = command("profile", "Time every launch, beside what the device can do.")
    profile.add_argument("source", metavar="PLAN|MODEL", help="a plan, or an ONNX file to compile")
    profile.add_argument(
        "--repeats", type=options.positive, default=20, metavar="N", help="measure N times (20)"
    )
    for option, what in (
        ("--svg", "times and roofline as a picture"),
        ("--trace", "a trace for chrome://tracing or Perfetto"),
        ("--trtexec", "times in the schema of trtexec --exportProfile"),
    ):
        profile.add_argument(option, metavar="FILE", help=f"write {what}")
    _input_options(profile)
    _json_option(profile)
    _build_options(profile)

    calibrate = command("calibrate", "Run a model on data and write the range of every activation.")
    calibrate.add_argument("model", metavar="MODEL", help="an ONNX file")
    calibrate.add_argument(
        "--data", metavar="DIR", required=True, help="a folder of .npy or .npz files of samples"
    )
    calibrate.add_argument(
        "-o", "--output", metavar="CACHE", required=True, help="the calibration cache to write"
    )
    calibrate.add_argument(
        "--method", default="kl", metavar="M", help="kl (default), percentile, mse or minmax"
    )
    calibrate.add_argument(
        "--tensors",
        action=options.Merge,
        type=options.tensors,
        metavar="PATTERN=M",
        help="method of the tensors whose names match, 'head*=minmax'; repeat",
    )
    calibrate.add_argument(
        "--percentile", type=float, default=99.99, metavar="P", help="of that method (99.99)"
    )
    calibrate.add_argument(
        "--overwrite", action="store_true", help="replace a cache of other data or another model"
    )
    calibrate.add_argument(
        "--shapes",
        action=options.Merge,
        type=options.shapes,
        metavar="NAME:DIMS",
        help="shapes to run with, input:8x3x224x224; by default single samples",
    )
    calibrate.add_argument(
        "--target", default="auto", metavar="T", help="auto (default), cpu, cuda"
    )
    calibrate.add_argument(
        "--opt-level", type=int, choices=range(6), default=0, help="tuning effort (0)"
    )
    _json_option(calibrate)

    compare = command("compare", "Run the same inputs through ONNX Runtime and nrt.")
    compare.add_argument("model", metavar="MODEL", help="an ONNX file")
    compare.add_argument("--plan", metavar="PLAN", help="use this plan instead of compiling MODEL")
    compare.add_argument(
        "--tolerance",
        type=options.tolerance,
        metavar="E",
        help="largest relative error; by default the precision's (fp32 1e-4, fp16 1e-2)",
    )
    _input_options(compare)
    _json_option(compare)
    _build_options(compare, show_layers=True)

    ablate = command("ablate", "Measure what each optimization pass is worth on a model.")
    ablate.add_argument("model", metavar="MODEL", help="an ONNX file")
    ablate.add_argument(
        "--passes",
        type=options.names,
        metavar="A,B",
        help="look at these passes (default: all that may be left out)",
    )
    ablate.add_argument(
        "--cumulative",
        action="store_true",
        help="also start without them and add one at a time",
    )
    ablate.add_argument(
        "--duration",
        type=options.seconds,
        default=3.0,
        metavar="S",
        help="measure the network for S seconds, and each pair of networks (3)",
    )
    ablate.add_argument(
        "--warm-up", type=options.seconds, default=0.2, metavar="S", help="run first for S (0.2)"
    )
    ablate.add_argument("--svg", metavar="FILE", help="write the bars of what each pass saves")
    _json_option(ablate)
    _build_options(ablate)

    doctor = command("doctor", "Check this machine: libraries, driver, GPU, toolkit.")
    _json_option(doctor)

    demo = command("demo", "Build a ResNet-18 in Python, compile, run, compare, show the layers.")
    demo.add_argument("--target", metavar="T", help="auto (default), cpu or cuda")
    demo.add_argument(
        "--precision", type=options.precision, metavar="P", help="default: fp16 on a GPU, else fp32"
    )
    demo.add_argument("--opt-level", type=int, choices=range(6), help="tuning effort (3)")
    demo.add_argument("--batch", type=options.positive, default=1, metavar="N", help="images (1)")
    return parser


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON to stdout")


def _plugin_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this Python file first, for the ops, functions and kernels that it registers; "
        "repeat",
    )


def _input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        dest="inputs",
        action="append",
        type=options.input_file,
        default=[],
        metavar="NAME=FILE",
        help="an input from a .npy file; repeat per input (default: random)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random inputs (0)")


def _graph_options(group: argparse._ArgumentGroup, *, show_layers: bool = False) -> None:
    group.add_argument(
        "--shapes",
        action=options.Merge,
        type=options.shapes,
        metavar="NAME:DIMS",
        help="shapes of inputs, input:8x3x224x224; repeat, or separate by commas",
    )
    group.add_argument(
        "--precision",
        type=options.precision,
        metavar="P",
        help="fp32 (default), fp16, bf16, tf32, int8 or fp8; a list permits several: fp8,fp16; "
        "auto takes whichever is faster, layer by layer",
    )
    text = "precision of the layers whose names match, 'head*=fp32'; repeat"
    if show_layers:
        group.set_defaults(show_layers=False)
        group.add_argument(
            "--layers",
            action=options.MergeOrShow,
            type=options.layers,
            nargs="?",
            metavar="PATTERN=P",
            help=f"alone: also compare every layer with fp32; with a value: {text}",
        )
    else:
        group.add_argument(
            "--layers", action=options.Merge, type=options.layers, metavar="PATTERN=P", help=text
        )
    group.add_argument(
        "--calibration", metavar="FILE", help="ranges for int8 and fp8, from nrt calibrate"
    )
    for what in ("input", "output"):
        group.add_argument(
            f"--{what}-format",
            action=options.Merge,
            type=options.io_format,
            metavar="NAME:TYPE:LAYOUT",
            help=f"how an {what} is bound, {what}:fp16:nhwc; the name may be left out where there "
            "is one; repeat",
        )
    group.add_argument(
        "--disable",
        dest="disabled",
        action="append",
        metavar="PASS",
        help="leave out an optimization pass, such as fold-batch-norm; repeat",
    )


def _build_options(parser: argparse.ArgumentParser, *, show_layers: bool = False) -> None:
    _plugin_option(parser)
    group = parser.add_argument_group("how a model is compiled")
    group.add_argument(
        "--target",
        metavar="T",
        help="auto (default), cpu, cuda, or cuda:ARCH for a GPU that is not here, cuda:sm_87",
    )
    _graph_options(group, show_layers=show_layers)
    group.add_argument("--opt-level", type=int, choices=range(6), help="tuning effort (3)")
    group.add_argument(
        "--accuracy",
        type=options.accuracy,
        metavar="METRIC:BOUND",
        help="give layers more precision until the outputs are as near fp32's: sqnr:20 (at least, "
        "in dB), relative_error:0.01 (at most)",
    )
    group.add_argument(
        "--accuracy-data",
        metavar="DIR",
        help="what --accuracy is judged on: a folder of .npy or .npz files of samples",
    )
    group.add_argument(
        "--tuning-seconds",
        type=options.seconds,
        metavar="S",
        help="start no measurement after S seconds of tuning; the rest take the best estimate",
    )
    group.add_argument("--timing-cache", metavar="FILE", help="read and write measured times here")
    group.add_argument(
        "--programmatic-launch",
        choices=("auto", "on", "off"),
        help="let kernels start before the ones before them have ended (Hopper and later); auto "
        "(default): whichever measures faster",
    )
    group.add_argument(
        "--streams",
        type=options.streams,
        metavar="N",
        help="run branches side by side on at most N streams; auto (default): whichever measures "
        "faster",
    )
    group.add_argument(
        "--memory-limit",
        type=options.memory,
        metavar="SIZE",
        help="refuse a plan that takes more: weights, arena, inputs and outputs; 512MiB, 2GB",
    )
