"""What following an estimate costs."""

from __future__ import annotations

import pytest

from benchmarks.estimates import main, regret
from nrt.errors import InputError


def case(problem: str, estimate: float, seconds: float | None) -> dict[str, object]:
    return {"problem": problem, "estimate": estimate, "seconds": seconds}


CASES = [
    case("a", 3.0, 10.0),
    case("a", 1.0, 14.0),
    case("a", 2.0, 12.0),
    case("a", 0.5, None),
    case("b", 1.0, 5.0),
    case("b", 2.0, 8.0),
]


@pytest.mark.parametrize(("first", "wanted"), [(1, (1.4 + 1) / 2), (2, (1.2 + 1) / 2), (3, 1.0)])
def test_regret_is_that_of_the_best_among_the_first(first: int, wanted: float) -> None:
    assert regret(CASES, first) == pytest.approx(wanted, rel=1e-12)


def test_nothing_timed_is_an_error() -> None:
    with pytest.raises(InputError, match="no configuration was timed"):
        regret([case("a", 1.0, None)], 4)


def test_an_unknown_variant_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--group", "gemm", "--variant", "conv_wgma"]) == 1
    assert "conv_wgma" in capsys.readouterr().err
