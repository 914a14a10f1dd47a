"""A schedule as steps: the order in which they are issued, with forks and joins between streams.

A fork or join means all that a stream holds when it is issued. So that a task waits for exactly
what it must, the order of issue is chosen: between a task and the one on another stream that waits
for it, the wait is placed where neither stream has gone further. In networks that is possible for
nearly all; else a task waits for a little more. Time has no part in it: a graph keeps dependencies
only.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import pairwise

import networkx as nx

from nrt.plan import ForkStep, JoinStep, Step
from nrt.schedule import Schedule

__all__ = ["issue_order", "with_forks"]


def with_forks(schedule: Schedule, groups: Sequence[Sequence[Step]]) -> tuple[Step, ...]:
    """The steps of a plan.

    Args:
        schedule: of the tasks.
        groups: per task its steps, on its stream.
    """
    if schedule.streams == 1:
        return tuple(step for task in _chains(schedule)[0] for step in groups[task])
    order = issue_order(schedule)
    at = {task: index for index, task in enumerate(order)}
    following = {a: b for chain in _chains(schedule) for a, b in pairwise(chain)}
    waits: dict[int, set[tuple[int, int]]] = {}
    heads = {chain[0]: chain for chain in _chains(schedule) if schedule.stream[chain[0]]}
    for task, sources in enumerate(schedule.waits):
        for source in sources:
            # Before the source's stream goes on.
            place = min(at[task], at.get(following.get(source, -1), len(order)))
            pair = (schedule.stream[source], schedule.stream[task])
            waits.setdefault(place, set()).add(pair)
        if task in heads and not sources:
            waits.setdefault(0, set()).add((0, schedule.stream[task]))
    steps: list[Step] = []
    known = {0}
    for index, task in enumerate(order):
        steps += _ties(waits.get(index, set()), known)
        steps += groups[task]
    ends = [chain[-1] for chain in _chains(schedule)]
    open_ = [schedule.stream[e] for e in ends if schedule.stream[e] and not _waited(schedule, e)]
    return (*steps, JoinStep(0, tuple(sorted(open_)))) if open_ else tuple(steps)


def issue_order(schedule: Schedule) -> list[int]:
    """Tasks, each behind what it waits for; of those that may come next, the earliest starts.

    Where task b of one stream waits for task a of another, b's predecessor should come before a's
    successor: a fork between them then ties nothing else. Such wishes are granted as long as they
    contradict nothing.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(schedule.stream)))
    previous, following = {}, {}
    for chain in _chains(schedule):
        for a, b in pairwise(chain):
            graph.add_edge(a, b)
            previous[b], following[a] = a, b
    crossings = sorted((b, a) for b, sources in enumerate(schedule.waits) for a in sources)
    graph.add_edges_from((a, b) for b, a in crossings)
    for b, a in sorted(crossings, key=lambda c: (schedule.start[c[0]], c)):
        first, second = previous.get(b), following.get(a)
        if first is not None and second is not None and not nx.has_path(graph, second, first):
            graph.add_edge(first, second)
    missing = dict(graph.in_degree())
    ready = [(schedule.start[t], t) for t, count in missing.items() if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, task = heapq.heappop(ready)
        order.append(task)
        for successor in graph.successors(task):
            missing[successor] -= 1
            if not missing[successor]:
                heapq.heappush(ready, (schedule.start[successor], successor))
    return order


def _chains(schedule: Schedule) -> list[list[int]]:
    """The tasks of every stream, in order."""
    chains: list[list[int]] = [[] for _ in range(schedule.streams)]
    for task in sorted(range(len(schedule.stream)), key=schedule.position.__getitem__):
        chains[schedule.stream[task]].append(task)
    return chains


def _waited(schedule: Schedule, task: int) -> bool:
    return any(task in sources for sources in schedule.waits)


def _ties(pairs: set[tuple[int, int]], known: set[int]) -> list[Step]:
    """Forks and joins for pairs of a source and a stream that waits for it.

    A stream that waits here and is waited for here is a source first: what it waits for is not
    meant. One that no step has forked yet must be a fork's target.
    """
    left = sorted(pairs)
    steps: list[Step] = []
    while left:
        sources = {source for source, _ in left}
        free = [pair for pair in left if pair[1] not in sources] or left
        new = [pair for pair in free if pair[1] not in known]
        source, target = (new or free)[0]
        targets = tuple(t for s, t in free if s == source)
        if new or len(targets) > 1:
            steps.append(ForkStep(source, targets))
            done = {(source, t) for t in targets}
        else:
            done = {pair for pair in free if pair[1] == target}
            steps.append(JoinStep(target, tuple(s for s, _ in sorted(done))))
        known.update(t for _, t in done)
        left = [pair for pair in left if pair not in done]
    return steps
