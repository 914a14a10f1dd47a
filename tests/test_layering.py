"""Imports go one way; the runtime is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nrt"

# Part -> the parts it may import, besides itself. A file or folder directly under nrt/ is a part.
_BASE = {"errors", "settings", "dtypes", "sizes"}
_PLAN = _BASE | {
    "plan",
    "plan_view",
    "plan_schema",
    "plan_order",
    "plan_streams",
    "plan_check",
    "plan_file",
    "antichain",
    "memory",
}
_IR = _BASE | {"drawing", "ir"}
_EXTENDED = _IR | {"extensions"}
_KERNELS = _EXTENDED | {"problem"}
# What ties graph, kernels and plan together; among themselves they must not form a cycle.
_TIES = {
    "places",
    "views",
    "destinations",
    "lowering",
    "dataflow",
    "build_target",
    "schedule",
    "fork_join",
    "liveness",
    "assembly",
    "work",
    "trial",
    "timing_cache",
    "tuner",
    "tuner_cpu",
    "tuner_cuda",
    "device_compare",
    "cuda_runner",
    "plan_clock",
    "programmatic",
    "kernel_pins",
    "streams",
    "memory_limit",
    "precision",
    "rewriting",
    "fusion_choice",
    "fusion_prices",
}
_BELOW_BUILDER = (
    _KERNELS
    | {"strides"}
    | _PLAN
    | {"frontend", "passes", "quantization", "cuda_kernels", "cpu_kernels", "runtime"}
    | _TIES
)
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "settings": {"errors"},
    "dtypes": {"errors"},
    "sizes": {"errors"},
    "drawing": {"errors"},
    "ir": _BASE | {"drawing"},
    "extensions": _IR,
    "frontend": _EXTENDED,
    "passes": _IR | {"quantization"},
    "quantization": _IR,
    "problem": _EXTENDED,
    "strides": _IR | {"problem"},
    "cuda_kernels": _KERNELS,
    "cpu_kernels": _KERNELS,
    "plan": _BASE | {"drawing", "plan_view"},
    "plan_view": _BASE | {"drawing"},  # works on a plan's attributes; `plan` loads it to be shown
    "plan_schema": _BASE | {"plan"},
    "plan_order": _BASE | {"plan"},
    "plan_streams": _BASE | {"plan", "plan_order"},
    "plan_check": _BASE | {"plan", "plan_streams"},
    "plan_file": _BASE | {"plan", "plan_schema", "plan_check"},
    "antichain": _BASE,
    "memory": _BASE | {"antichain"},
    "runtime": _BASE | {"plan", "plan_check", "plan_file"},
    **dict.fromkeys(_TIES, _BELOW_BUILDER),
    "builder": _BELOW_BUILDER,
    # What users call to register things: it knows every table that they are added to.
    "extend": _KERNELS | {"frontend", "cuda_kernels", "cpu_kernels"},
    "insight": _BELOW_BUILDER | {"builder"},
    "compiled": _BELOW_BUILDER | {"builder", "insight"},
    "calibrator": _BELOW_BUILDER | {"builder", "insight", "compiled"},
    "cli": _BELOW_BUILDER | {"builder", "extend", "insight", "compiled", "calibrator", "__init__"},
    # The public face: everything it does not import lazily is `errors`.
    "__init__": _BELOW_BUILDER | {"builder", "extend", "compiled", "calibrator"},
}
# Libraries that only one part may import, at any depth.
THIRD_PARTY: dict[str, set[str]] = {
    "onnx": {"frontend", "insight"},  # insight compares with ONNX's own reference evaluator
    "msgpack": {"plan_file"},
}
RUNTIME_LIBRARIES = {"numpy", "msgpack", "cuda", "ml_dtypes"}


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


class _Imports(ast.NodeVisitor):
    """Modules imported at run time, at any depth of the file."""

    def __init__(self, path: Path) -> None:
        self.package = ["nrt", *path.relative_to(PACKAGE).parts[:-1]]
        self.found: list[tuple[str, int]] = []

    def visit_If(self, node: ast.If) -> None:
        if not ast.unparse(node.test).endswith("TYPE_CHECKING"):
            self.generic_visit(node)
            return
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            base = self.package[: len(self.package) - node.level + 1]
            module = ".".join([*base, *filter(None, [module])])
        if module == "nrt":  # from nrt import x: x may be a module
            self.found += [(f"nrt.{alias.name}", node.lineno) for alias in node.names]
        else:
            self.found.append((module, node.lineno))


def _imports(path: Path) -> list[tuple[str, int]]:
    visitor = _Imports(path)
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.found


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_place() -> None:
    assert {_part(path) for path in _files()} <= set(ALLOWED)


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_point_down(part: str) -> None:
    wrong = []
    for path in _files():
        if _part(path) != part:
            continue
        for module, line in _imports(path):
            names = module.split(".")
            if names[0] != "nrt":
                continue
            target = names[1] if len(names) > 1 else "__init__"
            known = target in ALLOWED
            if target != part and (target not in ALLOWED[part] if known else part != "cli"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_what_ties_the_parts_has_no_cycle() -> None:
    below = {
        part: {m.split(".")[1] for m, _ in _imports(PACKAGE / f"{part}.py") if m.startswith("nrt.")}
        for part in _TIES
        if (PACKAGE / f"{part}.py").exists()
    }
    while free := {p for p, deps in below.items() if not deps & (set(below) - {p})}:
        below = {p: deps for p, deps in below.items() if p not in free}
    assert not below, f"cycle among {sorted(below)}"


def test_a_library_has_one_importer() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in _files()
        for module, line in _imports(path)
        if _part(path) not in THIRD_PARTY.get(module.split(".")[0], {_part(path)})
    ]
    assert not wrong, "\n".join(wrong)


def test_the_runtime_needs_few_libraries() -> None:
    parts = {
        "runtime",
        "drawing",
        "plan",
        "plan_view",
        "plan_schema",
        "plan_order",
        "plan_streams",
        "plan_check",
        "plan_file",
        "antichain",
        "memory",
        "errors",
        "dtypes",
    }
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in _files()
        if _part(path) in parts
        for module, line in _imports(path)
        if module.split(".")[0] not in RUNTIME_LIBRARIES | {"nrt"} | set(sys.stdlib_module_names)
    ]
    assert not wrong, "\n".join(wrong)


_BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} is blocked')

sys.meta_path.insert(0, Block())
{code}
"""


def _run_blocked(blocked: set[str], code: str) -> None:
    script = _BLOCKED.format(blocked=blocked, code=code)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_runtime_imports_without_the_compiler() -> None:
    _run_blocked({"numba", "onnx", "networkx", "llvmlite", "cuda", "rich"}, "import nrt.runtime")


def test_the_runtime_runs_a_cpu_plan_without_the_compiler() -> None:
    _run_blocked(
        {"numba", "onnx", "networkx", "llvmlite", "cuda", "rich"},
        "import sys; sys.path.insert(0, 'tests/runtime')\n"
        "import numpy as np, plans\n"
        "from nrt.runtime import Engine\n"
        "from nrt.plan_file import plan_from_bytes, plan_to_bytes\n"
        "x = np.ones((3, 5), np.float32)\n"
        "plan = plan_from_bytes(plan_to_bytes(plans.cpu_plan(np.ones((5, 3)))))\n"
        "y, z = Engine(plan, plans.bind)(x)\n"
        "assert (y == 4).all() and (z == 1).all()",
    )
