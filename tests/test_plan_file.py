from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.plans import cpu_plan, cuda_plan, tensor

from nrt.errors import PlanError
from nrt.plan import (
    PLAN_VERSION,
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    LiveBlock,
    Peak,
    Plan,
    ScalarArg,
    SetStep,
    Target,
)
from nrt.plan_check import check_plan
from nrt.plan_file import plan_from_bytes, plan_to_bytes, read_plan, write_plan

PREFIX = struct.Struct("<8sIQ32s")


def plans() -> list[Plan]:
    weights = np.random.default_rng().standard_normal((5, 3))
    return [cpu_plan(weights), cuda_plan()]


CPU, CUDA = plans()
FILES = [plan_to_bytes(CPU), plan_to_bytes(CUDA)]


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    _, _, length, _ = PREFIX.unpack(data[: PREFIX.size])
    end = PREFIX.size + length
    return msgpack.unpackb(data[PREFIX.size : end]), data[end:]


def assemble(header: Any, rest: bytes, version: int = PLAN_VERSION) -> bytes:
    """A file with an edited header: hash, length and blob places are made right again."""
    old = header.get("blobs") if isinstance(header, dict) else None
    sizes, blobs, end = [], [], None
    if isinstance(old, list) and old and all(isinstance(b, dict) for b in old):
        start = min(b["offset"] for b in old)
        for entry in old:
            at = len(rest) - (max(b["offset"] + b["nbytes"] for b in old) - entry["offset"])
            blobs.append(rest[at : at + entry["nbytes"]])
            sizes.append(entry["nbytes"])
        del start
    packed = msgpack.packb(header)
    for _ in range(4):
        end = PREFIX.size + len(packed)
        for entry, size in zip(old or [], sizes, strict=bool(sizes)):
            end = -(-end // 256) * 256
            entry["offset"] = end
            end += size
        packed = msgpack.packb(header)
    body = bytearray(
        PREFIX.pack(b"\x93nrtplan", version, len(packed), hashlib.sha256(packed).digest())
    )
    body += packed
    for entry, blob in zip(old or [], blobs, strict=bool(blobs)):
        body += bytes(entry["offset"] - len(body)) + blob
    return bytes(body)


@pytest.mark.parametrize("plan", plans(), ids=["cpu", "cuda"])
def test_round_trip(plan: Plan, tmp_path: Path) -> None:
    write_plan(plan, tmp_path / "a.plan")
    again = read_plan(tmp_path / "a.plan")
    assert again == plan
    assert plan_to_bytes(again) == (tmp_path / "a.plan").read_bytes()


def test_equal_plans_give_equal_bytes() -> None:
    turned = replace(CPU, ops_before={"Mul": 1, "Add": 1}, versions=dict(CPU.versions))
    assert turned == CPU
    assert plan_to_bytes(turned) == plan_to_bytes(CPU)


def test_blobs_are_aligned() -> None:
    header, _ = parts(FILES[1])
    for entry, blob in zip(header["blobs"], [CUDA.weights, *CUDA.cubins], strict=True):
        assert entry["offset"] % 256 == 0
        assert FILES[1][entry["offset"] : entry["offset"] + entry["nbytes"]] == blob


def test_an_empty_blob() -> None:
    plan = Plan("nothing", Target("cpu", "arm64"), (), (), 0, b"", (), (), (), ())
    assert plan_from_bytes(plan_to_bytes(plan)) == plan


# Writing


def test_writing_replaces_a_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(b"old")
    write_plan(CPU, path)
    assert read_plan(path) == CPU
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.plan"
    write_plan(CPU, path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PlanError, match=r"a.plan: cannot be written .*No space.*has space"):
        write_plan(CUDA, path)
    assert read_plan(path) == CPU
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"]


def test_writing_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot be written .*check that its folder exists"):
        write_plan(CPU, tmp_path / "missing" / "a.plan")


def test_an_unsound_plan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="unsound plan"):
        write_plan(replace(CPU, arena_bytes=0), tmp_path / "a.plan")
    assert not list(tmp_path.iterdir())


def test_values_that_a_file_cannot_hold() -> None:
    step = CPU.steps[1]
    assert isinstance(step, HostStep)
    odd = replace(CPU, steps=(replace(step, config=({1, 2},)), *CPU.steps[2:]))
    with pytest.raises(PlanError, match="a value that a file cannot"):
        plan_to_bytes(odd)
    listed = replace(CPU, steps=(replace(step, config=[1]), *CPU.steps[2:]))
    with pytest.raises(PlanError, match=r"does not survive a round trip: a HostStep.config must"):
        plan_to_bytes(listed)


# Reading


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"b.plan: cannot be read"):
        read_plan(tmp_path / "b.plan")


def test_reading_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07\x12\x04onnx")
    with pytest.raises(PlanError, match=r"model.onnx: this is no plan.*make one with `nrt build`"):
        read_plan(path)


def test_another_version() -> None:
    header, rest = parts(FILES[0])
    data = assemble(header, rest, version=PLAN_VERSION + 1)
    with pytest.raises(
        PlanError, match=rf"plan version {PLAN_VERSION + 1}, expected {PLAN_VERSION}"
    ):
        plan_from_bytes(data)


def test_a_header_longer_than_the_file() -> None:
    data = bytearray(FILES[0])
    data[12:20] = struct.pack("<Q", 2**60)
    with pytest.raises(PlanError, match=f"header of {2**60} bytes, expected at most"):
        plan_from_bytes(bytes(data))


def test_a_changed_weight() -> None:
    data = bytearray(FILES[0])
    data[-3] ^= 1
    with pytest.raises(PlanError, match="edited or damaged: blob 0 does not have its sha256"):
        plan_from_bytes(bytes(data))


def test_bytes_between_blobs() -> None:
    header, _ = parts(FILES[0])
    data = bytearray(FILES[0])
    data[header["blobs"][0]["offset"] - 1] = 1
    with pytest.raises(PlanError, match="the bytes before blob 0 are not zero"):
        plan_from_bytes(bytes(data))


def test_bytes_behind_the_last_blob() -> None:
    with pytest.raises(PlanError, match=r"the file has \d+ bytes, its header describes \d+"):
        plan_from_bytes(FILES[0] + b"\0")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_truncated(data: bytes, draw: st.DataObject) -> None:
    length = draw.draw(st.integers(0, len(data) - 1))
    with pytest.raises(PlanError):
        plan_from_bytes(data[:length])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_flipped_bytes(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        changed[at] ^= draw.draw(st.integers(1, 255))
    if bytes(changed) == data:
        return
    with pytest.raises(PlanError):
        plan_from_bytes(bytes(changed))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += _places(inner, (*path, key))
    return found


def _set(header: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        header = header[key]
    header[path[-1]] = value


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1), st.data())
def test_edited_header_with_its_hash_made_right(which: int, draw: st.DataObject) -> None:
    """What loads after an edit is sound; whatever does not, raises PlanError and nothing else."""
    header, rest = parts(FILES[which])
    path = draw.draw(st.sampled_from([p for p in _places(header) if p[0] == "plan"]))
    _set(header, path, draw.draw(junk))
    try:
        plan = plan_from_bytes(assemble(header, rest))
    except PlanError:
        return
    check_plan(plan)
    assert plan_from_bytes(plan_to_bytes(plan)) == plan


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_header_bytes(packed: bytes) -> None:
    prefix = PREFIX.pack(b"\x93nrtplan", PLAN_VERSION, len(packed), hashlib.sha256(packed).digest())
    with pytest.raises(PlanError):
        plan_from_bytes(prefix + packed)


def test_lengths_that_msgpack_only_claims() -> None:
    packed = b"\xdd\xff\xff\xff\xff" * 8
    prefix = PREFIX.pack(b"\x93nrtplan", PLAN_VERSION, len(packed), hashlib.sha256(packed).digest())
    with pytest.raises(PlanError, match="the header is no msgpack map"):
        plan_from_bytes(prefix + packed)


def test_a_field_twice() -> None:
    packed = b"\x82\xa4plan\xc0\xa4plan\xc0"
    prefix = PREFIX.pack(b"\x93nrtplan", PLAN_VERSION, len(packed), hashlib.sha256(packed).digest())
    with pytest.raises(PlanError, match="a map names a field twice"):
        plan_from_bytes(prefix + packed)


def edited(which: int, change: Callable[[dict[str, Any]], None]) -> bytes:
    header, rest = parts(FILES[which])
    change(header)
    return assemble(header, rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h: h["plan"].update(extra=1),
            r"plan has unknown fields \['extra'\] and lacks \[\]",
        ),
        (lambda h: h["plan"].pop("streams"), r"unknown fields \[\] and lacks \['streams'\]"),
        (
            lambda h: h["plan"].update(streams=True),
            r"plan.streams is True \(bool\), expected a whole",
        ),
        (lambda h: h["plan"].update(name=b"x"), r"plan.name is b'x' \(bytes\), expected text"),
        (lambda h: h["plan"].update(tolerance=float("nan")), r"plan.tolerance is nan"),
        (lambda h: h["plan"]["steps"][0].__setitem__(0, "shell"), "tag is 'shell'"),
        (lambda h: h["plan"]["steps"].append(7), r"steps\[4\] is 7 .*a pair tagged launch"),
        (
            lambda h: h["plan"]["steps"][1][1].update(programmatic=1),
            r"programmatic is 1 \(int\), expected true or false",
        ),
        (lambda h: h["plan"].pop("notes"), r"lacks \['notes'\]"),
        (lambda h: h["plan"]["notes"].update(a=1), r"notes\['a'\] is 1 \(int\), expected text"),
        (lambda h: h["plan"]["layers"][0].update(seconds=-1.0), r"seconds is -1.0"),
        (lambda h: h.update(blobs=[]), r"header.blobs is \[\] .*starts with the weights"),
        (lambda h: h.update(more=1), r"header has unknown fields \['more'\]"),
    ],
)
def test_fields_are_judged(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_from_bytes(edited(1, change))


def test_a_blob_elsewhere() -> None:
    header, rest = parts(FILES[0])
    header["blobs"][0]["offset"] += 1
    packed = msgpack.packb(header)
    data = PREFIX.pack(b"\x93nrtplan", PLAN_VERSION, len(packed), hashlib.sha256(packed).digest())
    with pytest.raises(PlanError, match=r"header.blobs\[0\].offset is \d+ .*expected \d+"):
        plan_from_bytes(data + packed + rest)


# Soundness


def launch(**change: Any) -> Plan:
    step = CUDA.steps[1]
    assert isinstance(step, LaunchStep)
    return replace(CUDA, steps=(CUDA.steps[0], replace(step, **change), *CUDA.steps[2:]))


def host(slot: str, value: Any) -> Plan:
    step = CPU.steps[1]
    assert isinstance(step, HostStep)
    return replace(CPU, steps=(CPU.steps[0], replace(step, **{slot: value}), *CPU.steps[2:]))


ARENA = BufferRef("arena", 0, 256)


def chain(*streams: int, between: Any = None) -> tuple[Any, ...]:
    """Launches on these streams, the last one programmatic, with a step before that."""
    last = CUDA.steps[3]
    assert isinstance(last, LaunchStep)
    launches = [replace(last, stream=stream) for stream in streams]
    launches[-1] = replace(launches[-1], programmatic=True)
    middle = [] if between is None else [between]
    return (ForkStep(0, (1,)), *launches[:-1], *middle, launches[-1], JoinStep(0, (1,)))


OUT_OF_PLACE = [
    (replace(CUDA, steps=chain(0)), 1, 0),
    (replace(CUDA, steps=chain(1)), 1, 1),
    (replace(CUDA, steps=chain(0, 1)), 2, 1),
    (replace(CUDA, steps=chain(0, 0, between=SetStep(ARENA))), 3, 0),
    (replace(CUDA, steps=chain(0, 0, between=CopyStep(ARENA, ARENA))), 3, 0),
    (replace(CUDA, steps=chain(1, 1, between=ForkStep(0, (1,)))), 3, 1),
    (replace(CUDA, steps=chain(0, 0, between=JoinStep(0, (1,)))), 3, 0),
    (replace(CUDA, steps=chain(0)[1:2]), 0, 0),
]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replace(CPU, target=Target("tpu", "v5")), "target 'tpu', expected 'cpu' or 'cuda'"),
        (replace(CUDA, target=Target("cuda", "90")), "target architecture '90', expected one like"),
        (replace(CPU, arena_bytes=-1), "arena of -1 bytes"),
        (replace(CPU, inputs=(IoSpec("", (1,), "fp32"),)), "an input without a name"),
        (replace(CPU, inputs=CPU.inputs * 2), "two inputs are called 'x'"),
        (replace(CPU, inputs=(IoSpec("x", (1,), "fp31"),)), "input 'x': dtype 'fp31' is unknown"),
        (replace(CPU, inputs=(IoSpec("x", (1,) * 33, "fp32"),)), "has 33 dimensions"),
        (
            replace(CPU, inputs=(IoSpec("x", (1,), "fp32", "chwn"),)),
            "input 'x' has layout 'chwn', expected one of row-major, nhwc",
        ),
        (
            replace(CPU, outputs=(IoSpec("y", (3, 5), "fp32", "nhwc"),)),
            r"output 'y' has layout 'nhwc' and shape \[3, 5\], expected 4 dimensions",
        ),
        (replace(CPU, inputs=(IoSpec("x", (2**40, 2**40), "fp32"),)), "input 'x' has shape"),
        (replace(CPU, steps=CPU.steps[:-1]), "no step writes output 'z'"),
        (replace(CPU, streams=2), "a CPU plan with GPU kernels or more than one stream"),
        (replace(CUDA, streams=0), "0 streams, expected 1 to 64"),
        (replace(CUDA, cubins=(b"PTX", CUDA.cubins[1])), "cubin 0 starts with b'PTX'"),
        (replace(CUDA, kernels=(KernelRef(2, "f"),)), "kernel 0: cubin 2, expected less than 2"),
        (replace(CUDA, kernels=(KernelRef(0, ""),)), "kernel 0 has no entry name"),
        (launch(kernel=2), "step 1: kernel 2, expected less than 2"),
        (launch(layer=1), "step 1: layer 1, expected less than 1"),
        (
            replace(CUDA, layers=(replace(CUDA.layers[0], reads=(0,)),)),
            r"layer 0 reads layers \[0\], expected earlier ones",
        ),
        (launch(stream=2), "step 1: stream 2, expected less than 2"),
        (launch(grid=(1, 65536, 1), cluster=(1, 1, 1)), r"grid \(1, 65536, 1\)"),
        (launch(block=(512, 4, 1)), r"block \(512, 4, 1\), expected at most 1024 threads"),
        (launch(shared=2**20), "1048576 bytes of shared memory, expected at most"),
        (launch(cluster=(3, 1, 1)), r"cluster \(3, 1, 1\) for grid \(4, 1, 1\)"),
        (
            replace(CUDA, target=Target("cuda", "sm_80")),
            r"cluster \(2, 1, 1\), which sm_80 does not know",
        ),
        (launch(args=(ARENA,) * 2000), "passes 2000 arguments"),
        (
            launch(args=(BufferRef("arena", 1000, 256),)),
            "bytes 1000 to 1256 of arena 0, which has 1024",
        ),
        (launch(args=(BufferRef("arena", -8, 8),)), "covers bytes -8 to 0"),
        (launch(args=(BufferRef("input", 0, 8, 1),)), "argument 0: input 1, expected less than 1"),
        (launch(args=(BufferRef("weights", 300, 256),)), "bytes 300 to 556 of weights 0"),
        (launch(args=(BufferRef("stack", 0, 8),)), "space 'stack', expected one of arena, weights"),
        (launch(args=(BufferRef("null", 8, 0),)), "is null but has an offset or a length"),
        (launch(args=(ScalarArg(-1, "u32"),)), "argument 0 is -1, which is no u32"),
        (launch(args=(ScalarArg(1.5, "i32"),)), "argument 0 is 1.5, which is no i32"),
        (launch(args=(ScalarArg(2**63, "i64"),)), "which is no i64"),
        (launch(args=(ScalarArg(1e39, "f32"),)), r"is 1e\+39, expected a float32"),
        (launch(args=(ScalarArg(float("nan"), "f32"),)), "is nan, expected a float32"),
        (launch(args=(ScalarArg(1, "f64"),)), "type 'f64', expected one of u32"),
        (host("variant", ""), "step 1 names no variant"),
        (
            host("outputs", (tensor("weights", (3, 5), (5, 1)),)),
            "writes to weights, expected arena",
        ),
        (host("outputs", (tensor("input", (3, 5), (5, 1)),)), "writes to input, expected arena"),
        (host("inputs", (tensor("arena", (4, 5), (5, 1)),)), "spans 80 bytes of a range of 60"),
        (host("inputs", (tensor("arena", (3, 5), (5, -1)),)), r"strides \[5, -1\] for shape"),
        (host("inputs", (tensor("arena", (3,), (5, 1)),)), r"strides \[5, 1\] for shape \[3\]"),
        (host("inputs", (tensor("arena", (3, 5), (5, 1), offset=2),)), "expected a multiple of 4"),
        (host("inputs", (tensor("arena", (3, 5), (5, 1), dtype="f"),)), "dtype 'f' is unknown"),
        (host("workspace", BufferRef("output", 0, 8)), "workspace lies in 'output', expected the"),
        (
            replace(CPU, steps=(*CPU.steps, CopyStep(ARENA, BufferRef("arena", 0, 8)))),
            "step 4 copies 256 bytes of arena to 8 bytes",
        ),
        (replace(CPU, steps=(*CPU.steps, SetStep(ARENA, 256))), "fills with 256, expected a byte"),
        (replace(CPU, steps=(*CPU.steps, CUDA.steps[3])), "launches a GPU kernel in a CPU plan"),
        (replace(CUDA, steps=(*CUDA.steps, CPU.steps[1])), "calls the host in a CUDA plan"),
        (replace(CUDA, steps=CUDA.steps[1:]), r"step 0 uses stream \[1\] before a fork"),
        (replace(CUDA, steps=(*CUDA.steps[:2], CUDA.steps[3])), r"streams \[1\] are not joined"),
        (replace(CUDA, steps=(*CUDA.steps, ForkStep(0, (1,)))), r"streams \[1\] are not joined"),
        (replace(CUDA, steps=(ForkStep(0, (0,)), *CUDA.steps)), r"ties stream 0 to \[0\]"),
        (replace(CUDA, steps=(JoinStep(0, ()), *CUDA.steps)), r"ties stream 0 to \[\]"),
        (replace(CUDA, steps=(ForkStep(0, (5,)), *CUDA.steps)), "stream 5, expected less than 2"),
        (launch(read_only=(4,)), "step 1: read-only argument 4, expected less than 4"),
        (
            launch(args=(BufferRef("arena", 0, 256, width=4),)),
            "argument 0 has rows of 4 bytes every 0",
        ),
        (
            launch(args=(BufferRef("arena", 0, 256, width=9, pitch=8),)),
            "argument 0 has rows of 9 bytes every 8",
        ),
        (replace(CUDA, peak=Peak(2000)), "a peak of 2000 bytes in an arena of 1024, with 0 blocks"),
        (replace(CUDA, peak=Peak(9, 0, (LiveBlock("x", 10),))), "a peak of 9 bytes in an arena of"),
        (
            replace(CUDA, peak=Peak(99, 1, (LiveBlock("x", 10),))),
            "peak: layer 1, expected less than 1",
        ),
        (
            replace(CUDA, steps=(*CUDA.steps[:2], CUDA.steps[3], CUDA.steps[2])),
            "steps 1 and 2 both touch bytes 0 to 256 of arena 0, one of them writes, and neither",
        ),
        (
            replace(CUDA, steps=(*CUDA.steps[:3], replace(CUDA.steps[3], read_only=(3,)))),
            "no step writes output 'y'",
        ),
        *(
            (plan, f"step {index} is a programmatic launch on stream {stream}, expected a launch")
            for plan, index, stream in OUT_OF_PLACE
        ),
        (
            replace(CUDA, target=Target("cuda", "sm_89"), steps=chain(0, 0)),
            "step 2 is a programmatic launch, which sm_89 does not know",
        ),
    ],
)
def test_unsound_plans_are_refused(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        check_plan(plan)
    assert "rebuild it with `nrt build`" in str(caught.value)


def test_launches_behind_launches_may_be_programmatic() -> None:
    for streams in ((0, 0), (1, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0)):
        steps = tuple(
            replace(s, args=(BufferRef("output", s.stream * 64, 64),), read_only=())
            if isinstance(s, LaunchStep)
            else s
            for s in chain(*streams)
        )
        plan = replace(CUDA, steps=steps, notes={"programmatic launch": "on: asked for"})
        check_plan(plan)
        assert plan_from_bytes(plan_to_bytes(plan)) == plan


def test_infinite_scalars_and_nested_forks_are_sound() -> None:
    check_plan(launch(args=(ScalarArg(float("-inf"), "f32"), ScalarArg(2**64 - 1, "u64"))))
    steps = (
        ForkStep(0, (1,)),
        ForkStep(1, (2,)),
        CUDA.steps[1],
        JoinStep(1, (2,)),
        JoinStep(0, (1,)),
        CUDA.steps[3],
    )
    check_plan(replace(CUDA, streams=3, steps=steps))
