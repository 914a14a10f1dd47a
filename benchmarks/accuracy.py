"""What does a precision cost on a real task? Top-1 of three trained networks on handwritten digits.

The networks (`examples/digits`) are plain, residual and depthwise-separable. Ranges come from the
calibration part of the data, top-1 from the test part; nothing was trained on either. The bar is
that of int8 with KL calibration: it may lose 0.46 points.

    python benchmarks/accuracy.py --target cpu
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.protocol import (
    CASE_ERRORS,
    ROOT,
    Case,
    Results,
    add_common_options,
    default_name,
    describe_error,
    run_header,
)
from benchmarks.tables import markdown
from examples.digits.data import Digits, load
from nrt.calibrator import calibrate
from nrt.compiled import compile as compile_model
from nrt.errors import NrtError
from nrt.insight.compare import relative_error
from nrt.runtime.cuda import device_count

if TYPE_CHECKING:
    from nrt.compiled import CompiledEngine

__all__ = ["BAR", "NETWORKS", "SETTINGS", "Setting", "Subject", "main"]

KEYS = ("network", "precision", "calibration")
FOLDER = ROOT / "examples" / "digits"
NETWORKS = ("plain", "residual", "separable")
BAR = 0.46
"""Points of top-1 that int8 with KL calibration may lose."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Setting:
    """How a network is compiled.

    Attributes:
        precision: what is measured.
        method: of the calibration; empty where none is needed. fp8 scales by the largest magnitude.
        bar: points of top-1 that it may lose; None where there is no bar.
        optional: a target may refuse it.
    """

    precision: str
    method: str = ""
    bar: float | None = None
    optional: bool = False

    @property
    def permitted(self) -> frozenset[str]:
        """Layers that cannot be of 8 bits are fp16."""
        return frozenset({self.precision} | ({"fp16"} if self.method else set()))


SETTINGS = (
    Setting("fp32"),
    Setting("fp16"),
    Setting("int8", "kl", BAR),
    Setting("int8", "percentile"),
    Setting("int8", "mse"),
    Setting("int8", "minmax"),
    Setting("fp8", "minmax", optional=True),
)


class Subject:
    """One network, and what it says of the test images in fp32."""

    def __init__(self, path: Path, parts: Mapping[str, Digits], target: str, opt_level: int):
        self.path = path
        self.test, self.calibration = parts["test"], parts["calibration"]
        self.target, self.opt_level = target, opt_level
        self.reference = self.scores(self.engine(Setting("fp32")))

    def engine(self, setting: Setting) -> CompiledEngine:
        """The network for all test images at once.

        Raises:
            NrtError: it cannot be compiled so.
        """
        ranges = None
        if setting.method:
            ranges = calibrate(
                self.path, [self.calibration.images], method=setting.method, target=self.target
            )
        return compile_model(
            self.path,
            shapes={"image": self.test.images.shape},
            precision=setting.permitted,
            calibration=ranges,
            target=self.target,
            opt_level=self.opt_level,
        )

    def scores(self, engine: CompiledEngine) -> Array:
        """Of the test images, ``[N, 10]``."""
        return np.asarray(engine.run({"image": self.test.images})["scores"])

    def case(self, setting: Setting) -> Case:
        """Top-1 in ``setting``; raises what building and running raise."""
        engine = self.engine(setting)
        found = self.scores(engine)
        top1, best = (100 * self.test.accuracy(s) for s in (found, self.reference))
        drop = best - top1
        failed = setting.bar is not None and drop > setting.bar
        return {
            "status": "failed" if failed else "passed",
            "message": f"{drop:.2f} points are over the bar of {setting.bar}" if failed else "",
            "top1": top1,
            "drop": drop,
            "bar": setting.bar,
            "changed": int(np.sum(found.argmax(axis=1) != self.reference.argmax(axis=1))),
            "images": len(self.test),
            "error": relative_error(found, self.reference),
            "layers": dict(Counter(layer.precision for layer in engine.plan.layers)),
        }


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    parts = load()
    for name in args.only or NETWORKS:
        subject = Subject(FOLDER / f"{name}.onnx", parts, args.target, args.opt_level)
        for setting in SETTINGS:
            if args.precision and setting.precision not in args.precision:
                continue
            case: Case = {
                "network": name,
                "precision": setting.precision,
                "calibration": setting.method,
                "target": args.target,
            }
            try:
                case |= subject.case(setting)
            except CASE_ERRORS as error:
                if setting.optional and isinstance(error, NrtError):
                    case |= {"status": "missing", "message": str(error).splitlines()[0]}
                else:
                    case |= {"status": "error", "message": describe_error(error)}
            yield case


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for; 1 if something broke or is over its bar."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, help="default: all three")
    known = tuple(dict.fromkeys(setting.precision for setting in SETTINGS))
    parser.add_argument("--precision", nargs="+", choices=known, help="default: all")
    parser.add_argument("--opt-level", type=int, default=0, help="0 (default) to 5")
    add_common_options(parser)
    args = parser.parse_args(argv)
    try:
        if args.target == "cuda" and not device_count():
            parser.error("--target cuda: no GPU here; --target cpu measures the same networks")
        header = run_header(args.commit)
        name = args.name or default_name("accuracy", args.target, header)
        path = args.results / f"{name}.json"
        results = Results.open(path, "accuracy", KEYS, header)
        done = []
        for case in _cases(args):
            results.add(case)
            done.append(case)
            print(_line(case), flush=True)
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{markdown('accuracy', results.runs, done)}\nwritten to {path}")
    return 0 if all(case["status"] in ("passed", "missing") for case in done) else 1


def _line(case: Case) -> str:
    head = " ".join(filter(None, (case[key] for key in KEYS)))
    if "top1" not in case:
        return f"{head}: {case['status']}: {case['message']}"
    tail = f"; {case['message']}" if case["message"] else ""
    return (
        f"{head}: {case['status']}, top-1 {case['top1']:.2f} %, drop {case['drop']:.2f}, "
        f"{case['changed']} of {case['images']} images decided otherwise{tail}"
    )


if __name__ == "__main__":
    sys.exit(main())
