"""Read an ONNX file and check it, without believing any of it.

The checker and the inliner of onnx work on serialized models, which may not pass 2 GiB and would
copy every weight. So both see a *skeleton*: the same nodes, with every stored tensor turned into a
graph input. The tensors stay aside and are read on first use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.defs
import onnx.helper
import onnx.inliner
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from nrt.errors import ImportModelError, UnsupportedOpError
from nrt.extensions.registry import registry
from nrt.frontend.onnx_table import canonical_domain, has_converter
from nrt.frontend.onnx_tensor import describe_tensor

__all__ = ["Source", "load", "one_line"]

_OLDEST_OPSET = 7
_FILE_LIMIT = 2**31  # protobuf cannot parse more
_TEXT_OR_MESSAGE = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
_NODE_LIMIT = (
    1_000_000  # after inlining: a chain of functions that call each other grows exponentially
)
_REGISTERED = "nrt.registered"  # domain under which the checker sees registered ops of ai.onnx


@dataclass(frozen=True)
class Source:
    """A checked model, ready to be converted.

    Attributes:
        name: of its graph.
        nodes: in topological order, local functions inlined.
        inputs: what the user feeds; stored tensors are not among them.
        outputs: names.
        tensors: stored tensors by name, initializers and large constants alike.
        opsets: version by canonical domain.
        folder: where external data may lie; None when the model came without one.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, onnx.TensorProto]
    opsets: dict[str, int]
    folder: Path | None


def one_line(error: BaseException) -> str:
    """The error's text without line breaks, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """Read and check a model.

    Raises:
        ImportModelError: it cannot be read or is not sound; the message says why in one line.
        UnsupportedOpError: it uses operators that onnx itself does not know.
    """
    proto, folder = _read(model)
    _check_text(proto)
    opsets = _versions(proto)
    tensors = _tensors(proto)
    skeleton = _skeleton(proto, tensors)
    _check_functions(skeleton)
    _check(skeleton, opsets)
    if skeleton.functions:
        try:
            skeleton = onnx.inliner.inline_local_functions(skeleton)
        except (RuntimeError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
            raise ImportModelError(
                f"the model's functions cannot be inlined: {one_line(error)}"
            ) from error
    return Source(
        name=skeleton.graph.name,
        nodes=tuple(skeleton.graph.node),
        inputs=tuple(i for i in proto.graph.input if i.name not in tensors),
        outputs=tuple(o.name for o in proto.graph.output),
        tensors=tensors,
        opsets=opsets,
        folder=folder,
    )


def _read(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(model, onnx.ModelProto):
        return model, None
    folder: Path | None = None
    if isinstance(model, bytes):
        raw, where = model, "the model"
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        where = f"'{path}'"
        raw = _read_file(path)
        folder = path.parent
    else:
        raise ImportModelError(
            f"expected a path, bytes or an onnx.ModelProto, got {type(model).__name__}"
        )
    if not raw:
        raise ImportModelError(f"{where} is empty; expected an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(raw)
    except (DecodeError, RuntimeError) as error:
        raise ImportModelError(
            f"{where} is not an ONNX model, or is truncated: {one_line(error)}"
        ) from error
    return proto, folder


def _read_file(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImportModelError(f"'{path}' is a folder; expected the path of an ONNX file")
        if not path.exists():
            raise ImportModelError(f"'{path}' does not exist; expected the path of an ONNX file")
        if not path.is_file():
            raise ImportModelError(f"'{path}' is not a regular file; expected an ONNX file")
        size = path.stat().st_size
        if size >= _FILE_LIMIT:
            raise ImportModelError(
                f"'{path}' has {size} bytes, more than protobuf can parse (2 GiB); "
                "save the model with its weights as external data"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImportModelError(f"'{path}' cannot be read: {one_line(error)}") from error


def _check_text(proto: onnx.ModelProto) -> None:
    """Refuse strings that are not UTF-8, which protobuf hands out as bytes."""
    stack: list[Any] = [proto]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto):
            # Listing its fields would copy the elements.
            stack.extend(message.external_data)
            fields: list[Any] = [message.name]
        else:
            fields = [v for d, v in message.ListFields() if d.type in _TEXT_OR_MESSAGE]
        for value in fields:
            several = not isinstance(value, str | bytes) and hasattr(value, "__len__")
            for item in value if several else (value,):
                if isinstance(item, bytes):
                    raise ImportModelError(
                        f"the model holds a name that is not UTF-8: {item[:80]!r}"
                    )
                if not isinstance(item, str):
                    stack.append(item)


def _versions(proto: onnx.ModelProto) -> dict[str, int]:
    """Check the format's versions; the opset of every domain."""
    if not proto.HasField("graph"):
        raise ImportModelError("the file holds no graph; it is not an ONNX model, or is truncated")
    if proto.ir_version > onnx.IR_VERSION:
        raise ImportModelError(
            f"the model has IR version {proto.ir_version}, the installed onnx {onnx.__version__} "
            f"knows up to {onnx.IR_VERSION}; upgrade onnx, or export with an older one"
        )
    if proto.ir_version < 3:
        raise ImportModelError(
            f"the model has IR version {proto.ir_version}, expected 3 or newer; "
            "convert it with onnx.version_converter"
        )
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        opsets[canonical_domain(entry.domain)] = entry.version
    newest = onnx.defs.onnx_opset_version()
    version = opsets.get("")
    if version is None:
        raise ImportModelError("the model imports no opset of the domain ai.onnx")
    if version > newest:
        raise ImportModelError(
            f"the model uses opset {version}, the installed onnx {onnx.__version__} knows up to "
            f"{newest}; upgrade onnx, or export with opset_version={newest}"
        )
    if version < _OLDEST_OPSET:
        changed = sorted({n.op_type for n in proto.graph.node if _changed(n, version)})
        if changed:
            raise ImportModelError(
                f"the model uses opset {version}, expected {_OLDEST_OPSET} to {newest}: "
                f"{', '.join(changed)} had another meaning then; "
                "convert it with onnx.version_converter"
            )
    return opsets


def _changed(node: onnx.NodeProto, version: int) -> bool:
    """Whether the operator meant something else before the oldest opset that nrt knows."""
    if canonical_domain(node.domain) or not onnx.defs.has(node.op_type, _OLDEST_OPSET, ""):
        return True
    now = onnx.defs.get_schema(node.op_type, _OLDEST_OPSET, "")
    return bool(now.since_version > version)


def _tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Every stored tensor by name: initializers, and Constant nodes that hold a tensor."""
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise ImportModelError(f"tensor '{name}' is sparse; store it dense")
    tensors: dict[str, onnx.TensorProto] = {}
    stored = [(t.name, t) for t in proto.graph.initializer]
    stored += [(n.output[0], _constant(n)) for n in proto.graph.node if _is_stored(n)]
    for name, tensor in stored:
        if not name:
            raise ImportModelError("a stored tensor has no name")
        if name in tensors:
            raise ImportModelError(f"tensor '{name}' is defined twice")
        describe_tensor(tensor)
        tensors[name] = tensor
    return tensors


def _is_stored(node: onnx.NodeProto) -> bool:
    return bool(
        node.op_type == "Constant"
        and canonical_domain(node.domain) == ""
        and len(node.output) == 1
        and not node.input
        and len(node.attribute) == 1
        and node.attribute[0].name == "value"
        and node.attribute[0].type == onnx.AttributeProto.TENSOR
    )


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    tensor = node.attribute[0].t
    if not tensor.name:
        # Messages name tensors. A ModelProto of the caller is never changed: work on a copy.
        named = onnx.TensorProto()
        named.CopyFrom(tensor)
        named.name = node.output[0]
        return named
    return tensor


def _skeleton(proto: onnx.ModelProto, tensors: dict[str, onnx.TensorProto]) -> onnx.ModelProto:
    skeleton = onnx.ModelProto(ir_version=proto.ir_version)
    skeleton.opset_import.extend(proto.opset_import)
    for entry in skeleton.opset_import:
        entry.domain = canonical_domain(entry.domain)
    # A registered op is meant to stand for the function that a model brings for it.
    skeleton.functions.extend(
        f for f in proto.functions if not registry.knows(canonical_domain(f.domain), f.name)
    )
    skeleton.graph.name = proto.graph.name or "graph"
    skeleton.graph.node.extend(n for n in proto.graph.node if not _is_stored(n))
    for node in skeleton.graph.node:
        node.domain = canonical_domain(node.domain)
    # Types of outputs follow from the nodes; exporters leave them out, but the checker insists.
    make = onnx.helper.make_tensor_value_info
    skeleton.graph.output.extend(make(o.name, 1, ()) for o in proto.graph.output)
    initializers = {t.name for t in proto.graph.initializer}
    skeleton.graph.input.extend(i for i in proto.graph.input if i.name not in initializers)
    for info in skeleton.graph.input:
        if info.type.WhichOneof("value") == "tensor_type":
            info.type.tensor_type.shape.SetInParent()
    skeleton.graph.input.extend(
        make(name, tensor.data_type, list(tensor.dims)) for name, tensor in tensors.items()
    )
    return skeleton


def _check(skeleton: onnx.ModelProto, opsets: dict[str, int]) -> None:
    try:
        onnx.checker.check_model(_without_registered(skeleton), full_check=False)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        unknown = [n for n in skeleton.graph.node if _no_schema(n, opsets)]
        if unknown:
            # The checker stops at the first operator that it does not know: list them all.
            raise UnsupportedOpError(
                [
                    (n.name, n.op_type, n.domain, opsets.get(canonical_domain(n.domain), 0))
                    for n in skeleton.graph.node
                    if n in unknown or not has_converter(n.domain, n.op_type)
                ]
            ) from error
        raise ImportModelError(f"the model is not valid ONNX: {one_line(error)}") from error


def _without_registered(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """``skeleton`` as the checker takes it: registered ops of ai.onnx are in a domain of their own.

    Of a domain that it has no schemas of, the checker does not look at the ops.
    """
    found = [n for n in skeleton.graph.node if n.domain == "" and registry.knows("", n.op_type)]
    found = [n for n in found if not onnx.defs.has(n.op_type)]
    if not found:
        return skeleton
    copy = onnx.ModelProto()
    copy.CopyFrom(skeleton)
    names = {n.op_type for n in found}
    for node in copy.graph.node:
        if node.domain == "" and node.op_type in names:
            node.domain = _REGISTERED
    copy.opset_import.append(onnx.helper.make_opsetid(_REGISTERED, 1))
    return copy


def _no_schema(node: onnx.NodeProto, opsets: dict[str, int]) -> bool:
    if canonical_domain(node.domain) != "" or registry.knows("", node.op_type):
        return False
    return not onnx.defs.has(node.op_type, opsets[""], "")


def _check_functions(skeleton: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, or that unfold to an absurd number of nodes."""
    functions = {(f.domain, f.name): f for f in skeleton.functions}
    sizes: dict[tuple[str, str], int] = {}
    # Depth-first without recursion: None marks a function whose callees are being counted.
    state: dict[tuple[str, str], bool] = {}
    for root in functions:
        stack = [root]
        while stack:
            key = stack[-1]
            if key in sizes:
                stack.pop()
                continue
            calls = [k for k in _calls(functions[key].node) if k in functions]
            if key in state:
                sizes[key] = min(
                    len(functions[key].node) + sum(sizes[k] for k in calls), _NODE_LIMIT + 1
                )
                stack.pop()
                continue
            state[key] = True
            for callee in calls:
                if callee in state and callee not in sizes:
                    raise ImportModelError(f"function '{callee[1]}' calls itself")
                stack.append(callee)
    total = len(skeleton.graph.node)
    total += sum(sizes.get(k, 0) for k in _calls(skeleton.graph.node))
    if total > _NODE_LIMIT:
        raise ImportModelError(
            f"the model has more than {_NODE_LIMIT} nodes once its functions are inlined"
        )


def _calls(nodes: list[onnx.NodeProto]) -> list[tuple[str, str]]:
    """(domain, name) of every node, those of nested graphs included."""
    found = []
    stack = list(nodes)
    while stack:
        node = stack.pop()
        found.append((node.domain, node.op_type))
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)
    return found
