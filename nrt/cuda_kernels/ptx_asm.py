"""Inline assembly as Numba intrinsics: one PTX statement, its operands and results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.cuda import types
from numba.cuda.extending import intrinsic

__all__ = ["asm", "statement", "with_arity"]

f32 = types.float32
u16 = types.uint16
u32 = types.uint32
i32 = types.int32
i64 = types.int64

_LETTER = {f32: "f", u32: "r", i32: "r", u16: "h", i64: "l"}
_LLVM: dict[Any, ir.Type] = {
    f32: ir.FloatType(),
    u32: ir.IntType(32),
    i32: ir.IntType(32),
    u16: ir.IntType(16),
    i64: ir.IntType(64),
}


def with_arity(impl: Callable[..., Any], name: str, count: int, doc: str) -> Any:
    """Make a Numba intrinsic of ``impl(typingctx, *args)`` with ``count`` named parameters."""
    names = ["typingctx", *(f"a{i}" for i in range(count))]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    impl.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(n, kind) for n in names]
    )
    impl.__name__ = impl.__qualname__ = name
    impl.__doc__ = doc
    return intrinsic(impl)


def statement(
    builder: Any,
    text: str,
    results: Sequence[Any],
    params: Sequence[Any],
    operands: Sequence[Any],
    *,
    pure: bool = False,
    tied: Sequence[int] = (),
    memory: bool = True,
) -> list[Any]:
    """Append one inline-assembly statement to LLVM code; the values of its results.

    For the code of intrinsics; the parameters are those of `asm`, ``operands`` are LLVM values.
    """
    letters = [f"={_LETTER[r]}" for r in results]
    free = len(params) - len(tied)
    letters += [_LETTER[p] for p in params[:free]] + [str(t) for t in tied]
    if memory and not pure:
        letters.append("~{memory}")
    if not results:
        returned: ir.Type = ir.VoidType()
    elif len(results) == 1:
        returned = _LLVM[results[0]]
    else:
        returned = ir.LiteralStructType([_LLVM[r] for r in results])
    kind = ir.FunctionType(returned, [_LLVM[p] for p in params])
    code = ir.InlineAsm(kind, text, ",".join(letters), side_effect=not pure)
    out = builder.call(code, operands)
    if len(results) == 1:
        return [out]
    return [builder.extract_value(out, k) for k in range(len(results))]


def asm(
    name: str,
    text: str,
    results: Sequence[Any],
    params: Sequence[Any],
    *,
    pure: bool = False,
    tied: Sequence[int] = (),
    memory: bool = True,
    doc: str = "",
) -> Any:
    """An intrinsic that is one inline-assembly statement.

    Args:
        name: of the intrinsic.
        text: the statement; operands ``$0…`` are results, then parameters;
            ``#0…`` are compile-time integers that follow the parameters.
        results: Numba types of the outputs (none: the statement returns nothing; several: a tuple).
        params: Numba types of the inputs; arguments are converted to them.
        pure: may be moved, merged and dropped like arithmetic.
        tied: for the last ``len(tied)`` parameters, the result each shares its register with.
        memory: clobbers memory (ignored when pure).
        doc: docstring.
    """

    def impl(typingctx: Any, *args: Any) -> Any:
        del typingctx
        fixed = args[len(params) :]
        if any(not isinstance(a, types.IntegerLiteral) for a in fixed):
            return None
        values = [a.literal_value for a in fixed]
        if not results:
            result: Any = types.void
        elif len(results) == 1:
            result = results[0]
        elif len(set(results)) == 1:
            result = types.UniTuple(results[0], len(results))
        else:
            result = types.Tuple(tuple(results))
        signature = result(*params, *fixed)

        def codegen(context: Any, builder: Any, sig: Any, llvm_args: Any) -> Any:
            body = text
            for index, value in enumerate(values):
                body = body.replace(f"#{index}", str(value))
            operands = list(llvm_args[: len(params)])
            parts = statement(
                builder, body, results, params, operands, pure=pure, tied=tied, memory=memory
            )
            if not results:
                return context.get_dummy_value()
            if len(results) == 1:
                return parts[0]
            if len(set(results)) == 1:
                return cgutils.pack_array(builder, parts)
            return cgutils.pack_struct(builder, parts)

        return signature, codegen

    return with_arity(impl, name, len(params) + _immediate_count(text), doc)


def _immediate_count(text: str) -> int:
    count = 0
    while f"#{count}" in text:
        count += 1
    return count
