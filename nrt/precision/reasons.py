"""Why each layer has the precision that it has."""

from __future__ import annotations

from collections.abc import Collection

from nrt.precision.accuracy import AccuracyBudget
from nrt.precision.costs import CostModel, Labels
from nrt.precision.pricing import Meter
from nrt.precision.survey import Layer, Survey

__all__ = ["reasons"]


def reasons(
    survey: Survey,
    labels: Labels,
    model: CostModel,
    raised: Collection[str],
    budget: AccuracyBudget | None,
    meter: Meter,
) -> dict[str, str]:
    """Layer -> why it has no narrower type; layers that have the narrowest one are left out.

    Args:
        survey: what there was to choose.
        labels: what was chosen.
        model: times.
        raised: layers that were given more precision for the budget.
        budget: of accuracy.
        meter: where the times come from.
    """
    cost = model.cost(labels)
    found = {}
    for name, layer in survey.layers.items():
        precision = labels[name]
        order = survey.precisions
        narrower = [p for p in order[: order.index(precision)] if _matters(p, layer)]
        if not narrower:
            continue
        able = [p for p in narrower if p in layer.able]
        refused = [layer.refusals[p] for p in reversed(narrower) if p in layer.refusals]
        parts = [text.removeprefix(f"{precision}: ") for text in refused]
        if name in raised and budget is not None:
            parts.insert(0, f"raised from {able[0]} for {budget}")
        elif able and meter.known:
            other = min(able, key=lambda p: model.cost({**labels, name: p}))
            more = model.cost({**labels, name: other}) - cost
            how = "measured" if meter.measured else "estimated"
            if more > 0:
                parts.append(
                    f"{other} would take {more * 1e-6:.1f} us more, conversions included ({how})"
                )
            else:
                parts.append(f"networks with {other} here took longer ({how})")
        elif able:
            parts.append("chosen with its neighbours")
        found[name] = f"{precision}: {'; '.join(parts) or 'asked for'}"
    return found


def _matters(precision: str, layer: Layer) -> bool:
    """Whether somebody may ask why a layer does not have ``precision``."""
    return layer.is_product or precision in layer.able or precision in layer.refusals
