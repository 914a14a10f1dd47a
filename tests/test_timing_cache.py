"""The timing cache: what it keeps, what it refuses, and two writers at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nrt.errors import BuildError
from nrt.timing_cache import Timing, TimingCache

FORMAT = "nrt timing cache 1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "timings.json"


def written(path: Path, entries: Any, format_: str = FORMAT) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"format": format_, "entries": entries}))
    return path


def test_what_is_saved_is_read_back(path: Path) -> None:
    cache = TimingCache(path)
    assert len(cache) == 0
    assert "a" not in cache
    cache["a"] = Timing(1.25e-6)
    cache["b"] = Timing(None, "wrong result: relative error 3e-01, limit 1e-04")
    assert "a" in cache
    assert not path.exists()
    cache.save()
    again = TimingCache(path)
    assert len(again) == 2
    assert again["a"] == Timing(1.25e-6)
    assert again["b"] == Timing(None, "wrong result: relative error 3e-01, limit 1e-04")
    with pytest.raises(KeyError):
        again["c"]


def test_nothing_new_writes_nothing(path: Path) -> None:
    TimingCache(path).save()
    assert not path.parent.exists()
    cache = TimingCache(path)
    cache["a"] = Timing(1.0)
    cache.save()
    path.unlink()
    cache.save()
    assert not path.exists()


def test_the_file_does_not_depend_on_the_order_of_entries(tmp_path: Path) -> None:
    texts = []
    for order in ("ab", "ba"):
        cache = TimingCache(tmp_path / f"{order}.json")
        for key in order:
            cache[key] = Timing(float(ord(key)))
        cache.save()
        texts.append(cache.path.read_text())
    assert texts[0] == texts[1]


def test_two_writers_keep_each_others_entries(path: Path) -> None:
    first, second = TimingCache(path), TimingCache(path)
    first["both"] = Timing(1.0)
    first["first"] = Timing(2.0)
    second["both"] = Timing(3.0)
    second["second"] = Timing(4.0)
    first.save()
    second.save()
    merged = TimingCache(path)
    assert {k: merged[k].seconds for k in ("both", "first", "second")} == {
        "both": 3.0,
        "first": 2.0,
        "second": 4.0,
    }
    assert "first" in second


def test_saving_leaves_no_other_file(path: Path) -> None:
    cache = TimingCache(path)
    for index in range(3):
        cache[str(index)] = Timing(1.0)
        cache.save()
    assert [p.name for p in path.parent.iterdir()] == ["timings.json"]


def test_a_failed_save_keeps_the_old_file_and_the_new_entries(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TimingCache(path)
    cache["old"] = Timing(1.0)
    cache.save()
    before = path.read_bytes()
    cache["new"] = Timing(2.0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(BuildError, match=r"cannot be written .*No space left.*--timing-cache"):
            cache.save()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    cache.save()
    assert TimingCache(path)["new"] == Timing(2.0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "timings.json"
    with pytest.raises(BuildError, match=r"timing cache .*timings\.json: "):
        TimingCache(path)["a"] = Timing(1.0)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 0.0, -math.inf])
def test_times_that_are_none_are_not_kept(path: Path, seconds: float) -> None:
    cache = TimingCache(path)
    with pytest.raises(BuildError, match=f"time {seconds!r} cannot be kept"):
        cache["a"] = Timing(seconds)
    assert "a" not in cache


@pytest.mark.parametrize(
    "entry",
    [
        [math.nan, ""], [math.inf, ""], [-1.0, ""], [0.0, ""], ["1.0", ""], [True, ""], [1, ""],
        [1.0], [1.0, "", ""], None, 3, {"seconds": 1.0},
    ],
    ids=repr,
)  # fmt: skip
def test_bad_entries_in_a_file_are_refused(path: Path, entry: Any) -> None:
    written(path, {"key": entry})
    with pytest.raises(BuildError, match=r"bad entry \(.*\); delete it or name another"):
        TimingCache(path)


@pytest.mark.parametrize("entries", [None, [], 3, "text"])
def test_entries_that_are_no_table_are_refused(path: Path, entries: Any) -> None:
    written(path, entries)
    with pytest.raises(BuildError, match="bad entry"):
        TimingCache(path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\x00\x01", "nonsense"])
def test_a_damaged_file_is_named_with_the_way_out(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(
        BuildError,
        match=r"timing cache .*timings.json: .*; delete it or name another with --timing",
    ):
        TimingCache(path)


def test_bytes_that_are_no_text_are_damage(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BuildError, match="delete it"):
        TimingCache(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"format": "nrt timing cache 9"}', "{}"])
def test_another_format_is_refused(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(BuildError, match=f"expected format '{FORMAT}'; delete it"):
        TimingCache(path)


def test_a_file_damaged_before_saving_is_not_overwritten(path: Path) -> None:
    cache = TimingCache(path)
    cache["a"] = Timing(1.0)
    path.parent.mkdir()
    path.write_text("not ours")
    with pytest.raises(BuildError, match="delete it"):
        cache.save()
    assert path.read_text() == "not ours"
