"""Plan files: ``magic | version | header length | sha256 of header | msgpack header | blobs``.

Integers are little-endian; blobs (the weights, then the cubins) start at multiples of 256 bytes
with zeros between. Every byte is covered: the header by its hash, each blob by one in the header,
padding by being zero. Nothing in a file is executed on the host or imported; equal plans give equal
bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from nrt.errors import PlanError
from nrt.plan import PLAN_VERSION, Plan
from nrt.plan_check import check_plan
from nrt.plan_schema import decode_plan, encode_plan, malformed, record

__all__ = ["MAGIC", "plan_from_bytes", "plan_to_bytes", "read_plan", "write_plan"]

MAGIC = b"\x93nrtplan"
_PREFIX = struct.Struct("<8sIQ32s")
_ALIGN = 256
_MAX_HEADER = 256 << 20
_MAX_ITEMS = 1 << 17
_WAY_OUT = "rebuild it with `nrt build`"

Read = Callable[[int, int], bytes]


def write_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write ``plan`` to ``path``: a temporary file beside it, synced, renamed.

    A reader sees the old file or the new one, never a part.

    Raises:
        PlanError: the plan is not sound, or the file cannot be written.
    """
    data = plan_to_bytes(plan)
    target = Path(path)
    try:
        _replace(target, data)
    except OSError as error:
        raise PlanError(
            f"plan {target}: cannot be written ({error}); check that its folder exists, "
            "is writable and has space"
        ) from error


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; a plan is no secret.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read and check a plan.

    Raises:
        PlanError: the file cannot be read, is truncated or edited, or is from another version.
    """
    try:
        with Path(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            return _parse(read, size)
    except OSError as error:
        raise PlanError(f"plan {path}: cannot be read ({error})") from error
    except PlanError as error:
        raise PlanError(f"plan {path}: {error}") from error


def plan_to_bytes(plan: Plan) -> bytes:
    """The file's contents.

    Raises:
        PlanError: the plan is not sound or holds values that a file cannot.
    """
    check_plan(plan)
    blobs = [bytes(plan.weights), *(bytes(c) for c in plan.cubins)]
    content = encode_plan(plan)
    offsets = [0] * len(blobs)
    header = _pack(content, blobs, offsets)
    # Offsets are packed as fixed-width integers only by value: repeat until the header's length,
    # which they depend on, no longer changes.
    while (found := _offsets(len(header), blobs)) != offsets:
        offsets = found
        header = _pack(content, blobs, offsets)
    parts = [
        _PREFIX.pack(MAGIC, PLAN_VERSION, len(header), hashlib.sha256(header).digest()),
        header,
    ]
    end = _PREFIX.size + len(header)
    for offset, blob in zip(offsets, blobs, strict=True):
        parts += [bytes(offset - end), blob]
        end = offset + len(blob)
    # What was built must load: a value of a wrong type is found here, not by the user.
    if decode_plan(_unpack(header)["plan"], plan.weights, plan.cubins) != plan:
        raise PlanError(
            "the plan does not survive a round trip: a HostStep.config must be a tuple, a problem "
            "must be lists, and every number plain"
        )
    return b"".join(parts)


def plan_from_bytes(data: bytes) -> Plan:
    """Parse and check the contents of a plan file.

    Raises:
        PlanError: truncated, edited, or from another version.
    """
    return _parse(lambda offset, length: data[offset : offset + length], len(data))


def _pack(content: dict[str, Any], blobs: list[bytes], offsets: list[int]) -> bytes:
    table = [
        {"offset": offset, "nbytes": len(blob), "sha256": hashlib.sha256(blob).digest()}
        for offset, blob in zip(offsets, blobs, strict=True)
    ]
    try:
        packed: bytes = msgpack.packb({"plan": content, "blobs": table}, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise PlanError(
            f"the plan holds a value that a file cannot ({error}); expected text, numbers and lists"
        ) from error
    return packed


def _offsets(header: int, blobs: list[bytes]) -> list[int]:
    return _layout(header, [len(b) for b in blobs])


def _layout(header: int, sizes: list[int]) -> list[int]:
    """Where blobs of these sizes start behind a header of this length."""
    offsets, end = [], _PREFIX.size + header
    for size in sizes:
        end = -(-end // _ALIGN) * _ALIGN
        offsets.append(end)
        end += size
    return offsets


def _parse(read: Read, size: int) -> Plan:
    header = _header(read, size)
    data = record(_unpack(header), "header", ("plan", "blobs"))
    table = data["blobs"]
    if type(table) is not list or not table:
        raise malformed("header.blobs", table, "a list that starts with the weights")
    entries = [
        record(entry, f"header.blobs[{i}]", ("offset", "nbytes", "sha256"))
        for i, entry in enumerate(table)
    ]
    for i, entry in enumerate(entries):
        for name in ("offset", "nbytes"):
            if type(entry[name]) is not int or not 0 <= entry[name] <= size:
                raise malformed(
                    f"header.blobs[{i}].{name}", entry[name], f"a whole number from 0 to {size}"
                )
    expected = _layout(len(header), [e["nbytes"] for e in entries])
    end = _PREFIX.size + len(header)
    blobs = []
    for i, (entry, offset) in enumerate(zip(entries, expected, strict=True)):
        if entry["offset"] != offset:
            raise malformed(f"header.blobs[{i}].offset", entry["offset"], str(offset))
        blobs.append(_blob(read, size, i, entry, end))
        end = offset + entry["nbytes"]
    if end != size:
        raise PlanError(f"the file has {size} bytes, its header describes {end}; {_WAY_OUT}")
    plan = decode_plan(data["plan"], blobs[0], tuple(blobs[1:]))
    check_plan(plan)
    return plan


def _header(read: Read, size: int) -> bytes:
    prefix = read(0, _PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)] or len(prefix) < len(MAGIC):
        raise PlanError(
            f"this is no plan: it starts with {prefix[:8]!r}, expected {MAGIC!r}; "
            "make one with `nrt build`"
        )
    if len(prefix) < _PREFIX.size:
        raise PlanError(f"truncated: {size} bytes, expected at least {_PREFIX.size}; {_WAY_OUT}")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != PLAN_VERSION:
        raise PlanError(
            f"plan version {version}, expected {PLAN_VERSION}: it is from another version of nrt; "
            f"{_WAY_OUT}"
        )
    if length > min(size - _PREFIX.size, _MAX_HEADER):
        raise PlanError(
            f"truncated or edited: header of {length} bytes, expected at most "
            f"{min(size - _PREFIX.size, _MAX_HEADER)}; {_WAY_OUT}"
        )
    header = read(_PREFIX.size, length)
    if hashlib.sha256(header).digest() != digest:
        raise PlanError(f"edited or damaged: the header does not have its sha256; {_WAY_OUT}")
    return header


def _unpack(header: bytes) -> Any:
    try:
        return msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except PlanError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PlanError(
            f"malformed plan: the header is no msgpack map ({type(error).__name__}: {error}); "
            f"{_WAY_OUT}"
        ) from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PlanError(f"malformed plan: a map names a field twice; {_WAY_OUT}")
    return found


def _blob(read: Read, size: int, index: int, entry: dict[str, Any], end: int) -> bytes:
    offset, nbytes = entry["offset"], entry["nbytes"]
    if offset + nbytes > size:
        raise PlanError(
            f"truncated: blob {index} ends at byte {offset + nbytes}, of {size}; {_WAY_OUT}"
        )
    if any(read(end, offset - end)):
        raise PlanError(f"edited: the bytes before blob {index} are not zero; {_WAY_OUT}")
    blob = read(offset, nbytes)
    if len(blob) != nbytes or hashlib.sha256(blob).digest() != entry["sha256"]:
        raise PlanError(f"edited or damaged: blob {index} does not have its sha256; {_WAY_OUT}")
    return blob
