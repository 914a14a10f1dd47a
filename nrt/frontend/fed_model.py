"""A model whose shapes are those of the data that it is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nrt.errors import CalibrationError
from nrt.frontend.network import Network
from nrt.ir.graph import Graph
from nrt.ir.op import Array

__all__ = ["FedModel"]


class FedModel:
    """A model that is imported for the shapes of a batch.

    Attributes:
        shapes: of its inputs, as far as they are fixed: numbers, or what is open; None where not
            even the number of dimensions is known.
    """

    def __init__(self, model: Any, shapes: Mapping[str, Sequence[int]] | None) -> None:
        """Look at the inputs of ``model``.

        Args:
            model: as for `nrt.compile`.
            shapes: input name -> shape, for models with open dimensions.

        Raises:
            CalibrationError: ``shapes`` are given for a `Network`.
            ImportModelError: the model cannot be read, or has no such input or shape.
        """
        self._model = model
        self.shapes: Mapping[str, Sequence[int | str | None] | None]
        if isinstance(model, Network):
            if shapes:
                raise CalibrationError(
                    "shapes= is for ONNX models with open dimensions; a Network's inputs have "
                    "theirs"
                )
            self.shapes = {v.name: v.shape for v in model.graph.inputs}
            return
        from nrt.frontend.onnx_model import import_model, input_shapes

        declared = input_shapes(model)
        if shapes:
            # Checks the names and the numbers against the model.
            fixed = import_model(model, shapes=shapes)
            self.shapes = {v.name: v.shape for v in fixed.inputs}
        else:
            self.shapes = declared

    def graph(self, batch: Mapping[str, Array]) -> Graph:
        """The imported graph for inputs of these shapes."""
        if isinstance(self._model, Network):
            return self._model.graph
        from nrt.frontend.onnx_model import import_model

        return import_model(self._model, shapes={n: np.shape(a) for n, a in batch.items()})
