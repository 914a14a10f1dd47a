"""`import nrt`: light, lazy, complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nrt

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("numba", "onnx", "networkx", "cuda", "onnxruntime", "llvmlite", "rich")


def _python(code: str) -> str:
    """Run ``code`` in a new interpreter, from the project's root; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_in_no_compiler_and_no_driver() -> None:
    code = f"import sys, nrt; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert _python(code) == "[]"


def test_the_command_line_starts_without_them_too() -> None:
    code = f"""
import sys
from nrt.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    assert _python(code).endswith("[]")


def test_loading_a_cuda_plan_needs_only_the_runtime() -> None:
    """With Numba, ONNX and networkx out of reach `nrt.load` gets as far as the file."""
    code = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("numba", "numba_cuda", "llvmlite", "onnx", "networkx"):
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import nrt, nrt.plan_file, nrt.runtime
assert nrt.Engine is nrt.runtime.Engine
try:
    nrt.load("/nonexistent/model.nrt")
except (nrt.PlanError, OSError) as error:
    print("reached", "/nonexistent/model.nrt" in str(error))
"""
    assert _python(code) == "reached True"


def test_every_public_name_resolves() -> None:
    for name in nrt.__all__:
        assert getattr(nrt, name) is not None
    assert dir(nrt) == sorted(nrt.__all__)


def test_the_errors_are_those_of_the_tree() -> None:
    from nrt import errors

    assert set(errors.__all__) <= set(nrt.__all__)
    for name in errors.__all__:
        assert getattr(nrt, name) is getattr(errors, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nrt' has no attribute 'complie'"):
        _ = nrt.complie


def test_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert nrt.__version__ == project["version"]


def _readme_block(language: str, after: str) -> str:
    text = (ROOT / "README.md").read_text()
    return text[text.index(after) :].split(f"```{language}\n", 1)[1].split("```", 1)[0]


def test_the_readmes_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _readme_block("python", "From Python:")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NRT_TARGET": "cpu",
            "NRT_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 8, 1, 1)\n"
    assert (tmp_path / "tiny.nrt").exists()


@pytest.mark.parametrize("name", ["setup", "demo", "test"])
def test_ci_finds_the_readmes_commands(name: str) -> None:
    assert _readme_block("bash", f"<!-- ci:{name} -->\n").strip()


def test_the_readmes_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(nrt.__file__).parent / "py.typed").is_file()
