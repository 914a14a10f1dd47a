"""Which layer computes in which precision: by measured time, under an accuracy budget.

``choice`` is the whole story in one function. ``survey`` says what there is to choose, ``pricing``
what each possibility costs, ``costs`` and ``cut`` find the fastest assignment, ``accuracy`` judges
networks, ``sensitivity`` and ``repair`` give precision back where a budget wants it.
"""

from __future__ import annotations

from nrt.precision.accuracy import AccuracyBudget
from nrt.precision.frontier import Frontier, Point

__all__ = ["AccuracyBudget", "Frontier", "Point"]
