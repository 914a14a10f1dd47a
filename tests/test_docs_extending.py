"""docs/extending.md shows the examples in full, and each of them runs by itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```\n", re.DOTALL)
BLOCKS = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
NAMES = ("pointwise", "op", "variant", "pass")


def test_the_page_shows_one_file_for_each() -> None:
    assert list(BLOCKS) == [f"examples/extend_{name}.py" for name in NAMES]
    for name, text in BLOCKS.items():
        assert text == (ROOT / name).read_text(encoding="utf-8"), f"{name} differs from the page"


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pointwise", r"Conv\[max\(x0, 0\.0\).*\] \('conv', 'relu6', 'gate'\)"),
        ("op", r"\[\[0\. 2\. 4\. 6\. 8\.\]\n \[0\. 2\. 4\. 6\. 8\.\]\]"),
        ("variant", r"variant='numpy_softmax'.*seconds=\d.*'variant numpy_softmax': 'chosen for"),
        ("pass", "fired at 'eighth'.*refused at 'third': the reciprocal is not exact"),
    ],
)
def test_each_block_runs(name: str, expected: str, tmp_path: Path) -> None:
    script = tmp_path / f"block_{name}.py"
    script.write_text(BLOCKS[f"examples/extend_{name}.py"])
    environment = {"PYTHONPATH": str(ROOT), "NRT_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout, re.DOTALL), done.stdout
