"""Random graphs, their odd shapes, layouts and types, as ONNX."""

from __future__ import annotations

import secrets

import numpy as np
import onnx
from hypothesis import HealthCheck, given, note, settings
from small_graphs import Recipe, feeds, make, recipes, worst_error

from nrt.frontend.onnx_export import to_onnx
from nrt.frontend.onnx_model import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.text import to_text
from nrt.ir.verify import verify
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import pipeline

# fp16 results of sums in another order may round to the neighbour, and so on from node to node.
TOLERANCE = 2e-2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes)
def test_a_model_is_the_graph_it_was_written_from(recipe: Recipe) -> None:
    seed = secrets.randbits(32)
    note(f"seed {seed}")
    graph = make(recipe, seed)
    note(to_text(graph))
    data = feeds(graph, np.random.default_rng(seed))
    want = evaluate(graph, data)
    for source in (graph, run_pipeline(graph, pipeline()).graph):
        model = to_onnx(source)
        onnx.checker.check_model(model, full_check=True)
        back = import_model(model)
        verify(back)
        assert [v.type for v in back.outputs.values()] == [v.type for v in graph.outputs.values()]
        got = evaluate(back, data)
        assert list(got) == list(want)
        assert worst_error(got, want) < TOLERANCE
