"""From a pointwise program to machine code that works on rows.

A *rows function* computes ``out[i, j] = program(in1[i, j], in2[i, j], ...)`` for rows that may lie
anywhere; a program of several results has as many outputs. It is the epilogue of a tile of a matrix
product, a fused pointwise node and a strided copy alike. Its C signature is
``void(rows, cols, table, ld, steps)``, all int64:

- ``table[k * ld + i]``: address of row ``i`` of operand ``k``; the outputs come first;
- ``steps[k]``: elements from one column of operand ``k`` to the next, read where its class is
  ``g``;
- ``steps[n + k]``: bytes added to every address of operand ``k``, of ``n`` operands.

The class of an operand says how its columns lie: ``1`` side by side, ``0`` one value for the row,
``g`` any distance. One compilation serves all sizes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from nrt.dtypes import DType
from nrt.ir.pointwise import Instr, Program

__all__ = ["LOADABLE", "RowsFunction", "column_class", "rows_function", "rows_source"]

LOADABLE = (
    "fp32", "fp64", "fp16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool",
    "fp8e4m3",
)  # fmt: skip
"""Element types that rows functions read and write."""

_LOAD = {
    "fp32": "F(load_f32({p}, {j}))",
    "fp64": "F(load_f64({p}, {j}))",
    "fp16": "F(half_to_float(load_u16({p}, {j})))",
    "int8": "I(load_i8({p}, {j}))",
    "int16": "I(load_i16({p}, {j}))",
    "int32": "I(load_i32({p}, {j}))",
    "int64": "load_i64({p}, {j})",
    "uint8": "I(load_u8({p}, {j}))",
    "uint16": "I(load_u16({p}, {j}))",
    "uint32": "I(load_u32({p}, {j}))",
    "bool": "(load_u8({p}, {j}) != 0)",
    "fp8e4m3": "F(e4m3_to_float(load_u8({p}, {j})))",
}
_STORE = {
    "fp32": "store_f32({p}, {j}, float32({v}))",
    "fp64": "store_f64({p}, {j}, float64({v}))",
    "fp16": "store_i16({p}, {j}, float_to_half({v}))",
    "int8": "store_i8({p}, {j}, int8({v}))",
    "int16": "store_i16({p}, {j}, int16({v}))",
    "int32": "store_i32({p}, {j}, int32({v}))",
    "int64": "store_i64({p}, {j}, int64({v}))",
    "uint8": "store_i8({p}, {j}, int8({v}))",
    "uint16": "store_i16({p}, {j}, int16({v}))",
    "uint32": "store_i32({p}, {j}, int32({v}))",
    "bool": "store_i8({p}, {j}, int8({v}))",
    "fp8e4m3": "store_i8({p}, {j}, float_to_e4m3({v}))",
}


@dataclass(frozen=True)
class RowsFunction:
    """A compiled rows function.

    Attributes:
        address: what `simd.call_rows` calls.
        owner: keeps the machine code alive.
    """

    address: int
    owner: Any


def column_class(step: int, cols: int) -> str:
    """The class of an operand whose columns are ``step`` elements apart."""
    if cols == 1 or step == 1:
        return "1"
    return "0" if step == 0 else "g"


def _strength_reduced(program: Program) -> Program:
    """Small constant exponents become products; ``x ** 3`` costs two instructions, not a call."""
    count = len(program.inputs)
    instrs: list[Instr] = []
    where = list(range(count))

    def emit(instr: Instr) -> int:
        instrs.append(instr)
        return count + len(instrs) - 1

    for instr in program.instrs:
        args = tuple(where[a] for a in instr.args)
        power = None
        if instr.opcode == "pow" and program.kinds[instr.args[1]] == "f" and args[1] >= count:
            power = instrs[args[1] - count].imm
        if power == 2.0:
            where.append(emit(Instr("mul", (args[0], args[0]))))
        elif power == 3.0:
            square = emit(Instr("mul", (args[0], args[0])))
            where.append(emit(Instr("mul", (square, args[0]))))
        elif power == 1.0:
            where.append(args[0])
        else:
            where.append(emit(replace(instr, args=args)))
    outputs = tuple(where[r] for r in program.outputs)
    return Program(program.inputs, tuple(instrs), outputs).simplified()


def rows_source(
    program: Program, dtypes: tuple[DType, ...], classes: tuple[str, ...], name: str
) -> str:
    """Source of the rows function; ``dtypes`` and ``classes`` begin with those of the outputs."""
    n, first = len(dtypes), len(program.outputs)
    names = [d.name for d in dtypes]
    body = [
        "@compiled",
        program.source("pointwise_body"),
        "",
        f"def {name}(rows, cols, table, ld, steps):",
    ]
    for k in range(n):
        body.append(f"    d{k} = load_i64(steps, {n + k})")
        if classes[k] == "g":
            body.append(f"    s{k} = load_i64(steps, {k})")
    body.append("    for i in range(rows):")
    for k in range(n):
        body.append(f"        p{k} = load_i64(table, {k} * ld + i) + d{k}")
        if k >= first and classes[k] == "0":
            body.append(f"        v{k} = {_LOAD[names[k]].format(p=f'p{k}', j='0')}")
    body.append("        for j in range(cols):")
    values = []
    places = ["j" if c == "1" else f"j * s{k}" for k, c in enumerate(classes)]
    for k in range(first, n):
        load = _LOAD[names[k]].format(p=f"p{k}", j=places[k])
        values.append(f"v{k}" if classes[k] == "0" else load)
    results = ", ".join(f"y{k}" for k in range(first))
    body.append(f"            {results} = pointwise_body({', '.join(values)})")
    for k in range(first):
        body.append(f"            {_STORE[names[k]].format(p=f'p{k}', j=places[k], v=f'y{k}')}")
    return "\n".join(body) + "\n"


@functools.lru_cache(maxsize=4096)
def rows_function(
    program: Program, dtypes: tuple[DType, ...], classes: tuple[str, ...]
) -> RowsFunction:
    """Compile (or find) the rows function of ``program``.

    Args:
        program: its results are the first operands, its inputs those after them.
        dtypes: of the outputs, then of the inputs.
        classes: of the outputs, then of the inputs; see the module.
    """
    import numba

    from nrt.cpu_kernels import mathlib, simd
    from nrt.cpu_kernels.jit import function_from_source, inlined, rows_address

    double = any(d.name == "fp64" for d in dtypes)
    scope = dict(mathlib.namespace(double))
    for key in simd.__all__:
        scope[key] = getattr(simd, key)
    for key in ("float32", "float64", "int8", "int16", "int32", "int64"):
        scope[key] = getattr(numba, key)
    for key in ("half_to_float", "float_to_half", "e4m3_to_float", "float_to_e4m3"):
        scope[key] = getattr(mathlib, key)
    scope["compiled"] = inlined
    source = rows_source(_strength_reduced(program), dtypes, classes, "rows")
    owner = rows_address(function_from_source("rows", source, scope))
    return RowsFunction(int(owner.address), owner)
