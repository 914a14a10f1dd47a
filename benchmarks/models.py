"""How fast is it? Whole networks: nrt beside PyTorch and ONNX Runtime, on one GPU.

Every side runs the same model on the same random inputs in the same process, under one CUDA graph,
timed by device events around its replays. nrt's output is compared with PyTorch's.

    python benchmarks/models.py --models DIR --only resnet50 --batch 1 32 --peers eager compile
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: its folder is on the path, the repository is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.protocol import (
    CASE_ERRORS,
    Case,
    Results,
    add_common_options,
    default_name,
    describe_error,
    host_sampler,
    measure,
    run_header,
)
from benchmarks.tables import markdown, ratio_of
from benchmarks.zoo_models import CNNS, TRANSFORMERS, Zoo
from nrt.compiled import compile as compile_model
from nrt.errors import NrtError
from nrt.insight.compare import default_tolerance, relative_error
from nrt.insight.inputs import random_inputs
from nrt.runtime.cuda import device_count

if TYPE_CHECKING:
    import onnx

    from nrt.runtime import Engine

__all__ = ["main", "model_case", "nrt_times"]

KEYS = ("model", "batch", "precision")
PEERS = ("eager", "compile", "max-autotune", "onnxruntime")
Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def nrt_times(engine: Engine, inputs: Arrays, **protocol: Any) -> tuple[Case, Arrays]:
    """Times of the plan on a GPU (or, on the CPU target, of whole runs), and its outputs."""
    context = engine.create_context()
    outputs = {n: np.asarray(a) for n, a in context.run(dict(inputs)).items()}
    if engine.plan.target.kind == "cuda":
        stats = measure(lambda n: context.device_seconds(n) or [], **protocol)
    else:
        stats = measure(host_sampler(lambda: context.run(dict(inputs))), **protocol)
    return stats.to_data(), outputs


def model_case(
    model: onnx.ModelProto, precision: str, args: argparse.Namespace, protocol: Mapping[str, Any]
) -> Case:
    """One model in one precision: every side's times, or the error that it met."""
    case: Case = {"status": "passed", "message": "", "times": {}, "opt_level": args.opt_level}
    try:
        start = time.perf_counter()
        engine = compile_model(
            model,
            precision=precision,
            target=args.target,
            opt_level=args.opt_level,
            **_io_options(model, precision, args.nrt_io),
        )
        build_seconds = round(time.perf_counter() - start, 1)
        inputs = random_inputs(engine.inputs, args.seed)
        times, outputs = nrt_times(engine, inputs, **protocol)
        io = ", ".join(f"{s.dtype} dense" for s in engine.inputs)
        case["times"]["nrt"] = {**times, "build_seconds": build_seconds, "io": io}
        case["launches"] = len(engine.plan.layers)
    except CASE_ERRORS as error:
        return {**case, "status": "error", "message": f"nrt: {describe_error(error)}"}
    del engine
    if args.target == "cuda" and args.peers:
        _add_peers(case, model, precision, inputs, outputs, args, protocol)
    return case


def _io_options(model: onnx.ModelProto, precision: str, wanted: str) -> dict[str, Any]:
    """Bindings as PyTorch has them, where nrt can: in the precision measured, channels last."""
    import nrt

    if wanted == "model" or precision not in ("fp16", "bf16") or not hasattr(nrt, "IOFormat"):
        return {}
    images = {
        value.name: nrt.IOFormat(dtype=precision, layout="nhwc")
        for value in model.graph.input
        if len(value.type.tensor_type.shape.dim) == 4
    }
    return {"io": images} if images else {}


def _add_peers(
    case: Case,
    model: onnx.ModelProto,
    precision: str,
    inputs: Arrays,
    outputs: Arrays,
    args: argparse.Namespace,
    protocol: Mapping[str, Any],
) -> None:
    from benchmarks.peers import OrtPeer, TorchPeer, ort_has_cuda

    wide = {n: a.astype(np.float32) if a.dtype.kind not in "iub" else a for n, a in inputs.items()}
    try:
        torch_peer = TorchPeer(model, precision, wide, args.peer_io == "native")
        _check(case, outputs, torch_peer.run(), precision)
    except CASE_ERRORS as error:
        _note(case, f"PyTorch: {describe_error(error)}")
        return
    for peer in args.peers:
        try:
            if peer != "onnxruntime":
                case["times"][peer] = torch_peer.time(peer, **protocol)
            elif ort_has_cuda():
                case["times"][peer] = OrtPeer(model, precision, wide).time(**protocol)
        except CASE_ERRORS as error:
            _note(case, f"{peer}: {describe_error(error)}")


def _check(case: Case, outputs: Arrays, expected: Arrays, precision: str) -> None:
    """The two sides must have computed the same: each may err by the tolerance."""
    error = max(relative_error(outputs[name], array) for name, array in expected.items())
    limit = 2 * default_tolerance({precision})
    case["error"] = error if np.isfinite(error) else None
    if not error <= limit:
        _note(case, f"nrt's output is {error:.2g} from PyTorch's, limit {limit:g}")
        case["status"] = "failed"


def _note(case: Case, text: str) -> None:
    case["message"] = "; ".join(filter(None, [case["message"], text]))
    case["status"] = "error"


def _cases(args: argparse.Namespace, zoo: Zoo) -> Iterator[Case]:
    protocol = {"warm_up": args.warm_up, "duration": args.duration}
    for name in zoo.names((*CNNS, *TRANSFORMERS), args.only):
        for batch in args.batch:
            model = zoo.load(name, batch)
            if model is None:
                print(f"{name}: its batch is fixed, and not at {batch}: left out", flush=True)
                continue
            for precision in args.precision:
                case = {"model": name, "batch": batch, "precision": precision}
                yield case | model_case(model, precision, args, protocol)
                gc.collect()  # plans and modules of the last case hold device memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases asked for; 1 if one of them is wrong or broke."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with zoo.py")
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", nargs="+", default=["fp16"], help="fp16 tf32 fp32 bf16")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--only", nargs="+", help="model names; default: every one it knows")
    parser.add_argument("--opt-level", type=int, default=3, help="of nrt, 0 to 5 (3)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=["eager", "compile", "onnxruntime"]
    )
    parser.add_argument(
        "--nrt-io",
        choices=("native", "model"),
        default="native",
        help="nrt's bindings: as PyTorch's where this version can (native), or the model's fp32",
    )
    parser.add_argument(
        "--peer-io",
        choices=("native", "model"),
        default="native",
        help="PyTorch's bindings: its precision, channels last (native), or the model's fp32",
    )
    parser.add_argument("--warm-up", type=float, default=0.2, help="seconds per subject (0.2)")
    parser.add_argument("--duration", type=float, default=0.4, help="seconds per subject (0.4)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (0)")
    add_common_options(parser)
    args = parser.parse_args(argv)
    try:
        if args.target == "cuda" and not device_count():
            parser.error("--target cuda: no GPU here; --target cpu times nrt alone")
        zoo = Zoo(args.models)
        header = run_header(args.commit)
        name = args.name or default_name("models", args.target, header)
        path = args.results / f"{name}.json"
        results = Results.open(path, "models", KEYS, header)
        done = []
        for case in _cases(args, zoo):
            results.add(case)
            done.append(case)
            print(_line(case), flush=True)
    except NrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{markdown('models', results.runs, done)}\nwritten to {path}")
    return 0 if all(case["status"] == "passed" for case in done) else 1


def _line(case: Case) -> str:
    parts = []
    for who, times in case["times"].items():
        ratio = ratio_of(case["times"], who) if who != "nrt" else None
        tail = "" if ratio is None else f" ({ratio:.2f} of nrt's)"
        parts.append(f"{who} {times['median'] * 1e3:.3f} ms{tail} [{times.get('io', '')}]")
    head = f"{case['model']} batch {case['batch']} {case['precision']}: {case['status']}"
    return "\n  ".join([head, *parts, *filter(None, [case["message"]])])


if __name__ == "__main__":
    sys.exit(main())
