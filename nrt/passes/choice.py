"""Rewrites with a choice: valid wherever they match, faster only on some devices and sizes.

A rule of the pipeline fires wherever its check allows. Where that does not always pay, the rewrite
belongs to a `ChoicePass`: it names its sites, and the builder compares measured times of the
network's tasks with and without each of them. Sites with one key are decided alike; a losing key
comes back in ``skip`` and the pipeline runs once more without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.passes.base import Pass

__all__ = ["ChoicePass", "Site"]


@dataclass(frozen=True)
class Site:
    """One place where a rewrite with a choice is possible.

    Attributes:
        key: what the decision depends on: ops, shapes and attributes of the nodes, no names. Sites
            of one pass with equal keys are decided alike.
        origins: the model's nodes behind the nodes that would be rewritten; by them, the builder
            finds the tasks to compare.
    """

    key: str
    origins: frozenset[str]


@dataclass(frozen=True)
class ChoicePass(Pass):
    """Base of passes whose rewrites are decided by measurement.

    Class attributes:
        choice: tells the builder that there is something to decide.

    Attributes:
        skip: keys of the sites to leave alone.
    """

    choice: ClassVar[bool] = True
    skip: frozenset[str] = frozenset()

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        """Every site of ``graph``, those of ``skip`` included; the graph stays as it is."""
        raise NotImplementedError(type(self).__name__)
