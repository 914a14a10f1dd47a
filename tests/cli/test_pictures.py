"""`nrt inspect --svg` and `nrt diff`: files, text, JSON, errors."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nrt.cli.files import save_text

from .support import Cli

SHAPES = ("--shapes", "image:2x3x9x7")


def test_the_graph_in_three_languages(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"net.{name}" for name in ("svg", "dot", "mermaid")]
    options = [o for f in files for o in (f"--{f.suffix[1:]}", f)]
    result = cli("inspect", model_file, *SHAPES, *options)
    assert (result.code, result.err) == (0, "")
    assert [line.split(": ")[0] for line in result.out.splitlines()] == list(map(str, files))
    svg, dot, mermaid = (f.read_text(encoding="utf-8") for f in files)
    ElementTree.fromstring(svg)
    assert 'data-box="node:conv"' in svg
    assert dot.startswith('digraph "tiny" {')
    assert mermaid.startswith("flowchart TD\n")


def test_precision_reaches_the_picture(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.dot"
    assert cli("inspect", model_file, *SHAPES, "--precision", "fp16", "--dot", path).code == 0
    assert "fp16[2,5,9,7]" in path.read_text(encoding="utf-8")


def test_what_does_not_go_with_a_picture(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.svg"
    for option in ("--json", "--candidates"):
        result = cli("inspect", model_file, *SHAPES, "--svg", path, option)
        assert (result.code, result.out) == (2, "")
        assert f"{option} is about kernels, and --svg compiles none; leave one" in result.err
    result = cli("inspect", model_file, "--svg", path, "--opt-level", "0", "--target", "cpu")
    assert result.code == 2
    assert "--target, --opt-level: kernels are not chosen for a picture of the gra" in result.err
    assert not path.exists()


def test_a_plan_holds_no_graph(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "net.nrt"
    options = ("--target", "cpu", "--opt-level", "0")
    assert cli("build", model_file, "-o", plan, *SHAPES, *options).code == 0
    for command in (("inspect", plan, "--svg", tmp_path / "x.svg"), ("diff", plan)):
        result = cli(*command)
        assert (result.code, result.out) == (2, "")
        assert f"{plan} is a plan, which holds no graph; give the model" in result.err


def test_diff(cli: Cli, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "diff.svg"
    result = cli("diff", model_file, *SHAPES, "--after", "fuse-conv-epilogue", "--svg", path)
    assert result.code == 0
    assert result.out.startswith("imported -> fuse-conv-epilogue: 5 nodes -> 4; ")
    assert "~ Conv 'conv' + Relu 'relu' -> Conv 'conv' # conv, relu\n" in result.out
    assert result.err == f"nrt: note: {path}: both graphs side by side\n"
    assert len(list(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text"))) > 9


def test_diff_as_json(cli: Cli, model_file: Path) -> None:
    data = json.loads(cli("diff", model_file, *SHAPES, "--json").out)
    assert (data["before"], data["after"]) == ("imported", "final")
    assert {c["kind"] for c in data["changes"]} <= {"kept", "replaced", "added", "removed"}
    assert sum(len(c["before"]) for c in data["changes"]) == 5


def test_diff_of_unknown_stages(cli: Cli, model_file: Path) -> None:
    result = cli("diff", model_file, *SHAPES, "--before", "import")
    assert (result.code, result.out) == (2, "")
    assert "there is no stage 'import'; did you mean 'imported'?; stages: imported" in result.err
    result = cli("diff", model_file, *SHAPES, "--opt-level", "1")
    assert result.code == 2
    assert "unrecognized arguments: --opt-level 1" in result.err


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    save_text(path, "äö\n")
    assert path.read_bytes() == "äö\n".encode()
    with pytest.raises(UnicodeEncodeError):
        save_text(path, "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == "äö\n".encode()
