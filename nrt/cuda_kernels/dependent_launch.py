"""Programmatic dependent launch: what makes a kernel safe to start before its predecessor ends.

A launch with the attribute ``programmatic stream serialization`` (Hopper and later) may begin once
every block of the kernel before it has executed ``griddepcontrol.launch_dependents`` or has exited.
Its blocks are then in place, with their parameters and their shared memory, when the predecessor's
last block ends. What orders memory is ``griddepcontrol.wait``: it returns when the predecessor has
completed and its writes are visible (PTX ISA, section "griddepcontrol").

Why it is right to launch every kernel of a chain so:

- *Chains.* A kernel waits for the one before it only. That one has completed, and so has waited for
  the one before it, and so on to the chain's start: transitive as long as EVERY kernel waits. A
  block that exits early must wait as well, or a grid could complete before its predecessor;
  therefore the wait is the first thing of all.
- *Memory that is used again.* An arena's bytes have many owners. Before the wait nothing that an
  earlier kernel writes is read, and nothing that an earlier kernel reads is written: not through
  global memory, and not through tensor maps. Parameters are constants of the launch and may be read
  at any time.
- *Replays.* The first launch of a graph has no attribute: it begins when the replay before has
  ended.
- *What lies between launches.* Behind a copy, a fill, a fork or a join on its stream the next
  launch has no attribute either; `nrt.plan_check` refuses a plan that says otherwise.
- *Several streams.* A launch with the attribute has one predecessor in the graph, the launch before
  it on its stream. A join would give it another, so after a join it has no attribute. Every edge
  from stream to stream is a full one: it is passed when the kernel before it has completed, and
  with that one, by its wait, all that it has waited for. A launch that other streams wait for has
  no programmatic successor either, although nothing is known to speak against both kinds of edges
  from one node.

A kernel that holds a ``griddepcontrol.wait`` of its own, to load weights before it, promises the
same: every thread that touches such memory waits first, and in every block some thread does. It has
to take care of one thing more: intrinsics marked ``pure``, the ``ld.global.nc`` among them, have no
order for Numba's compiler, which may move them before a wait that is written in Python. Here the
wait is put into the finished PTX, and the assembler keeps memory behind it.
"""

from __future__ import annotations

import re

from nrt.errors import CompileError

__all__ = ["MINIMUM_CC", "with_dependent_launch"]

MINIMUM_CC = (9, 0)
"""The first compute capability that has ``griddepcontrol``."""

_WAIT = "griddepcontrol.wait"
_PROLOGUE = "\tgriddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;\n"
# An entry up to its first instruction. A function's first block is no branch target: what stands
# there runs once in every thread.
_HEAD = re.compile(r"\.entry\b[^{]*\{[^\n]*\n(?:[ \t]*(?:\.(?:reg|local|shared)\b[^\n]*)?\n)*")


def with_dependent_launch(ptx: str) -> str:
    """``ptx`` whose entries wait for their predecessor and then let their successor start.

    In this order at most two kernels of a chain run at a time. Let go before the wait, a successor
    could start while the kernel before this one still fills first-level caches by
    ``ld.global.nc``, whose lines only the start of a kernel is sure to drop. The successor's blocks
    take no place from this kernel, since all of its blocks run by then.

    Returns:
        ``ptx`` itself where it has a ``griddepcontrol.wait`` already; without the attribute at the
        launch the two instructions do nothing.

    Raises:
        CompileError: there is no entry.
    """
    if _WAIT in ptx:
        return ptx
    text, count = _HEAD.subn(lambda head: head.group() + _PROLOGUE, ptx)
    if count == 0:
        raise CompileError("the PTX has no entry to put griddepcontrol.wait into")
    return text
