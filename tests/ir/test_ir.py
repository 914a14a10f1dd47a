"""The package's names are resolved on first use, and without networkx where it is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nrt.ir


def test_every_public_name_resolves() -> None:
    for name in nrt.ir.__all__:
        assert getattr(nrt.ir, name) is not None
        assert name in dir(nrt.ir)
    with pytest.raises(AttributeError, match="has no attribute 'Grpah'"):
        _ = nrt.ir.Grpah  # type: ignore[attr-defined]


def test_ops_and_programs_need_no_networkx() -> None:
    code = (
        "import sys, nrt.ir.ops, nrt.ir.pointwise; "
        "assert not {'networkx', 'numba', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
