"""A plan's header as plain data: strict decoding of what msgpack gave, field by field.

Each decoder takes a value and the path to it, and returns the typed value or raises. The tables at
the end are the format: fields are exactly those of the dataclasses, no more and no fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

from nrt.errors import PlanError
from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    HostTensor,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    Layer,
    LiveBlock,
    Peak,
    Plan,
    ScalarArg,
    SetStep,
    Target,
    TensorMapArg,
)

__all__ = ["decode_plan", "encode_plan", "malformed", "record"]

Decode = Callable[[Any, str], Any]

_INT64 = 2**63 - 1
_LIST = 1 << 17
_TEXT = 1 << 16
_DEPTH = 16


def malformed(path: str, found: Any, expected: str) -> PlanError:
    """The error for a value of the wrong kind; shows the value's type and a bounded piece of it."""
    text = repr(found)
    text = text if len(text) <= 60 else text[:57] + "..."
    return PlanError(
        f"malformed plan: {path} is {text} ({type(found).__name__}), expected {expected}; "
        "rebuild it with `nrt build`"
    )


def _int(low: int = 0, high: int = _INT64) -> Decode:
    def decode(value: Any, path: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise malformed(path, value, f"a whole number from {low} to {high}")
        return value

    return decode


def _text(value: Any, path: str) -> str:
    if type(value) is not str or len(value) > _TEXT:
        raise malformed(path, value, f"text of at most {_TEXT} characters")
    return value


def _seconds(value: Any, path: str) -> float | None:
    if value is None:
        return None
    if type(value) is not float or not isfinite(value) or value < 0:
        raise malformed(path, value, "None or a float of at least 0")
    return value


def _flag(value: Any, path: str) -> bool:
    if type(value) is not bool:
        raise malformed(path, value, "true or false")
    return value


def _number(value: Any, path: str) -> int | float:
    if type(value) not in (int, float):
        raise malformed(path, value, "a number")
    number: int | float = value
    return number


def _list(item: Decode, length: int | None = None) -> Decode:
    def decode(value: Any, path: str) -> tuple[Any, ...]:
        if type(value) is not list or (len(value) != length if length else len(value) > _LIST):
            raise malformed(path, value, f"a list of {length or f'at most {_LIST}'} items")
        return tuple(item(v, f"{path}[{i}]") for i, v in enumerate(value))

    return decode


def _counts(item: Decode) -> Decode:
    def decode(value: Any, path: str) -> dict[str, Any]:
        if type(value) is not dict or len(value) > _LIST:
            raise malformed(path, value, "a map")
        return {_text(k, f"{path} key"): item(v, f"{path}[{k!r}]") for k, v in value.items()}

    return decode


def _data(value: Any, path: str) -> Any:
    """Plain data as it stands: it is judged by whoever knows what it means."""
    _plain(value, path, 0)
    return value


def _config(value: Any, path: str) -> Any:
    """Plain data whose lists are tuples again: configurations are hashable."""
    _plain(value, path, 0)
    return _tuples(value)


def _plain(value: Any, path: str, depth: int) -> None:
    if depth > _DEPTH:
        raise malformed(path, value, f"data nested at most {_DEPTH} deep")
    if type(value) is list:
        for item in value:
            _plain(item, path, depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            _text(key, f"{path} key")
            _plain(item, path, depth + 1)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise malformed(path, value, "lists, maps, text and numbers")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if type(value) is list else value


def record(value: Any, path: str, names: tuple[str, ...]) -> dict[str, Any]:
    """A map with exactly these keys.

    Raises:
        PlanError: it is no map, a key is missing or unknown.
    """
    if type(value) is not dict:
        raise malformed(path, value, f"a map with {', '.join(names)}")
    if value.keys() != set(names):
        unknown = sorted(map(str, value.keys() - set(names)))
        missing = sorted(set(names) - value.keys())
        raise PlanError(
            f"malformed plan: {path} has unknown fields {unknown} and lacks {missing}; "
            "the file was edited or comes from another version of nrt: rebuild it with `nrt build`"
        )
    return value


def _object(cls: Callable[..., Any], **decoders: Decode) -> Decode:
    names = tuple(decoders)

    def decode(value: Any, path: str) -> Any:
        data = record(value, path, names)
        return cls(**{n: d(data[n], f"{path}.{n}") for n, d in decoders.items()})

    return decode


def _tagged(**decoders: Decode) -> Decode:
    """``[tag, value]``."""

    def decode(value: Any, path: str) -> Any:
        if type(value) is not list or len(value) != 2 or type(value[0]) is not str:
            raise malformed(path, value, f"a pair tagged {', '.join(decoders)}")
        tag, inner = value
        if tag not in decoders:
            raise malformed(f"{path} tag", tag, f"one of {', '.join(decoders)}")
        return decoders[tag](inner, f"{path}.{tag}")

    return decode


_shape = _list(_int())
_dim3 = _list(_int(1, 2**31 - 1), 3)
_u31 = _int(0, 2**31 - 1)
_ref = _object(
    BufferRef, space=_text, offset=_int(), nbytes=_int(), index=_u31, width=_int(), pitch=_int()
)
_scalar = _object(ScalarArg, value=_number, ctype=_text)
_corner = _list(_int(-(2**15), 2**15 - 1))
_map = _object(
    TensorMapArg,
    ref=_ref,
    dtype=_text,
    dims=_shape,
    strides=_shape,
    box=_shape,
    steps=_shape,
    lower=_corner,
    upper=_corner,
    swizzle=_u31,
)
_tensor = _object(HostTensor, ref=_ref, dtype=_text, shape=_shape, strides=_shape)
_io = _object(IoSpec, name=_text, shape=_shape, dtype=_text, layout=_text)

_TAGS: dict[type, str] = {
    BufferRef: "buffer",
    ScalarArg: "scalar",
    TensorMapArg: "map",
    LaunchStep: "launch",
    CopyStep: "copy",
    SetStep: "set",
    HostStep: "host",
    ForkStep: "fork",
    JoinStep: "join",
}

_step = _tagged(
    launch=_object(
        LaunchStep,
        kernel=_u31,
        grid=_dim3,
        block=_dim3,
        args=_list(_tagged(buffer=_ref, scalar=_scalar, map=_map)),
        shared=_u31,
        cluster=_dim3,
        layer=_u31,
        stream=_u31,
        programmatic=_flag,
        read_only=_list(_u31),
    ),
    copy=_object(CopyStep, src=_ref, dst=_ref, layer=_u31, stream=_u31),
    set=_object(SetStep, dst=_ref, value=_int(0, 255), layer=_u31, stream=_u31),
    host=_object(
        HostStep,
        variant=_text,
        problem=_data,
        config=_config,
        inputs=_list(_tensor),
        outputs=_list(_tensor),
        workspace=_ref,
        layer=_u31,
    ),
    fork=_object(ForkStep, stream=_u31, targets=_list(_u31)),
    join=_object(JoinStep, stream=_u31, sources=_list(_u31)),
)

_PLAN: dict[str, Decode] = {
    "name": _text,
    "target": _object(Target, kind=_text, arch=_text, device=_text),
    "inputs": _list(_io),
    "outputs": _list(_io),
    "arena_bytes": _int(),
    "kernels": _list(_object(KernelRef, cubin=_u31, entry=_text)),
    "steps": _list(_step),
    "layers": _list(
        _object(
            Layer,
            name=_text,
            op=_text,
            origins=_list(_text),
            inputs=_list(_text),
            outputs=_list(_text),
            precision=_text,
            variant=_text,
            config=_text,
            seconds=_seconds,
            flops=_int(),
            nbytes=_int(),
            reason=_text,
            reads=_list(_u31),
        )
    ),
    "streams": _u31,
    "peak": _object(
        Peak,
        nbytes=_int(),
        layer=_u31,
        alive=_list(_object(LiveBlock, name=_text, nbytes=_int())),
    ),
    "ops_before": _counts(_int()),
    "ops_after": _counts(_int()),
    "tolerance": _seconds,
    "versions": _counts(_text),
    "notes": _counts(_text),
}


def decode_plan(data: Any, weights: bytes, cubins: tuple[bytes, ...]) -> Plan:
    """A plan from its header's data and its blobs; types only, `check_plan` judges the rest.

    Raises:
        PlanError: a field is unknown, missing, or of the wrong type.
    """
    values = record(data, "plan", tuple(_PLAN))
    decoded = {name: decode(values[name], f"plan.{name}") for name, decode in _PLAN.items()}
    return Plan(weights=weights, cubins=cubins, **decoded)


def encode_plan(plan: Plan) -> dict[str, Any]:
    """The inverse of `decode_plan`, without the blobs; equal plans give equal data."""
    return {name: _encode(getattr(plan, name), name) for name in _PLAN}


def _encode(value: Any, field: str = "") -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name), f.name) for f in fields(value)}
    if field in ("steps", "args") and all(type(v) in _TAGS for v in value):
        return [[_TAGS[type(v)], _encode(v)] for v in value]
    if isinstance(value, Mapping):
        # Sorted: two equal maps may have been filled in different order.
        return {k: _encode(value[k]) for k in sorted(value)}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if field in ("seconds", "tolerance") and value is not None:
        return float(value)
    return value
