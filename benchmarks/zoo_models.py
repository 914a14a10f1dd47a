"""The models to measure: a folder with ``zoo.py`` that offers ``names()`` and ``load()``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from nrt.errors import InputError

if TYPE_CHECKING:
    import onnx

__all__ = ["CNNS", "TRANSFORMERS", "Zoo", "batch_of", "fix_sequence"]

CNNS = (
    "resnet50",
    "resnet50_dynamo",
    "resnet152",
    "vgg19",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "densenet121",
    "unet",
)
TRANSFORMERS = ("bert_base", "vit_b_16_dynamo", "gpt2")
_SEQUENCE = 128
"""Tokens, where a model leaves it open."""


class Zoo:
    """Models by name.

    Args:
        folder: holds ``zoo.py`` with ``names() -> list[str]`` and
            ``load(name, batch=None) -> onnx.ModelProto``.

    Raises:
        InputError: it does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._module = _import(folder / "zoo.py")
        self._loaded: tuple[str, int, onnx.ModelProto] | None = None

    def names(self, wanted: Sequence[str], only: Sequence[str] | None = None) -> list[str]:
        """Those of ``wanted`` that the folder holds, or exactly ``only``.

        Raises:
            InputError: one of ``only`` is not there.
        """
        there = set(self._module.names())
        if only is None:
            return [name for name in wanted if name in there]
        missing = [name for name in only if name not in there]
        if missing:
            raise InputError(
                f"{self.folder} has no model {', '.join(missing)}; "
                f"it has {', '.join(sorted(there))}"
            )
        return list(only)

    def load(self, name: str, batch: int) -> onnx.ModelProto | None:
        """``name`` at ``batch``, weights filled; None if the model is fixed at another batch.

        The last model is kept, for the next precision.
        """
        if self._loaded is None or self._loaded[:2] != (name, batch):
            self._loaded = None
            model = self._module.load(name, batch=batch)
            fix_sequence(model)
            self._loaded = (name, batch, model)
        model = self._loaded[2]
        return model if batch_of(model) == batch else None


def batch_of(model: onnx.ModelProto) -> int:
    """The first dimension of the first input; 0 when it is open."""
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def fix_sequence(model: onnx.ModelProto, length: int = _SEQUENCE) -> None:
    """Set every open dimension called ``S`` (tokens) to ``length``, in place."""
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "S":
                dim.dim_value = length


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path} is missing: --models wants a folder with zoo.py")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function in ("names", "load"):
        if not hasattr(module, function):
            raise InputError(f"{path} has no function {function}(); see benchmarks/README.md")
    return module
