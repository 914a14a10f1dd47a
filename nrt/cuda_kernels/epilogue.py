"""The end of a kernel: the pointwise program of an epilogue, and the store.

`make_store` writes the one function that ends every kernel: it takes ``width`` neighbouring results
of a row, runs the epilogue's program on each and stores them with the widest instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba import cuda

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, loader, program_namespace, storer
from nrt.dtypes import FP32, DType
from nrt.ir.pointwise import Program
from nrt.problem import TensorSpec

__all__ = [
    "MAX_EXTRAS",
    "Extra",
    "epilogue_extras",
    "held_operand",
    "make_store",
]

MAX_EXTRAS = 4
"""Operands besides the accumulator that an epilogue may read; kernels have as many parameters."""


@dataclass(frozen=True)
class Extra:
    """How an epilogue reads one operand.

    Attributes:
        dtype: element type. mode: ``scalar``; ``channel`` (index k * stride); ``same`` (the
        output's offset); ``general``
            (from row and channel by ``row_dims``/``row_strides``).
        stride: of the channel dimension, in elements.
        row_dims: sizes of the output's other dimensions, outermost first.
        row_strides: strides of the operand along them.
    """

    dtype: DType
    mode: str
    stride: int = 0
    row_dims: tuple[int, ...] = ()
    row_strides: tuple[int, ...] = ()


def epilogue_extras(extras: Sequence[TensorSpec], y: TensorSpec, channel: int) -> tuple[Extra, ...]:
    """Classify epilogue operands against the output ``y`` whose channel dimension is ``channel``.

    Operands broadcast NumPy-style against the output; rows count the output's other dimensions in
    order.
    """
    rows = [d for d in range(len(y.shape)) if d != channel]
    result = []
    for spec in extras:
        pad = len(y.shape) - len(spec.shape)
        strides = [0] * pad + [
            0 if d == 1 else s for d, s in zip(spec.shape, spec.strides, strict=True)
        ]
        live = [s if d > 1 else 0 for d, s in zip(y.shape, strides, strict=True)]
        want = [s if d > 1 else 0 for d, s in zip(y.shape, y.strides, strict=True)]
        if not any(live):
            result.append(Extra(spec.dtype, "scalar"))
        elif live == want:
            result.append(Extra(spec.dtype, "same"))
        elif not any(live[d] for d in rows):
            result.append(Extra(spec.dtype, "channel", live[channel]))
        else:
            result.append(
                Extra(
                    spec.dtype,
                    "general",
                    live[channel],
                    tuple(y.shape[d] for d in rows),
                    tuple(live[d] for d in rows),
                )
            )
    return tuple(result)


def _general_index(extra: Extra) -> str:
    """Row index text: peel the dimensions off ``m`` from the innermost."""
    terms = []
    divisor = 1
    for size, stride in reversed(list(zip(extra.row_dims, extra.row_strides, strict=True))):
        if stride:
            terms.append(f"u32(u32(u32(m) // u32({divisor})) % u32({size})) * u32({stride})")
        divisor *= size
    return " + ".join([*terms, f"u32(k) * u32({extra.stride})"])


_UNPACK = {"fp16": ("f16_lo", "f16_hi"), "bf16": ("bf16_lo", "bf16_hi")}
_VECTOR = {4: "ld1", 8: "ld2", 16: "ld4"}


def _load_extra(index: int, extra: Extra, width: int, lines: list[str]) -> list[str]:
    """Append lines that load operand ``index`` for ``width`` channels; returns a variable each."""
    name = f"e{index}"
    variables = [f"v{index}_{j}" for j in range(width)]
    if extra.mode == "scalar":
        lines.append(f"v{index}_0 = load{index}({name}, u32(0))")
        return [f"v{index}_0"] * width
    if extra.mode == "same":
        base, step = "u32(o)", 1
    elif extra.mode == "channel":
        base, step = f"u32(u32(k) * u32({extra.stride}))", extra.stride
    else:
        lines.append(f"g{index} = u32({_general_index(extra)})")
        base, step = f"g{index}", extra.stride
    bytes_ = width * extra.dtype.itemsize
    vector = step == 1 and extra.mode != "general"
    if vector and extra.dtype == FP32 and width in (4, 8):
        for part in range(width // 4):
            quad = ", ".join(f"w{index}_{part * 4 + i}" for i in range(4))
            lines.append(f"{quad} = ld4(at({name}, u32({base} + u32({part * 4}))))")
        lines += [f"{v} = as_float(w{index}_{j})" for j, v in enumerate(variables)]
        return variables
    if vector and bytes_ in _VECTOR and extra.dtype.name in _UNPACK:
        words = width // 2
        target = ", ".join(f"w{index}_{i}" for i in range(words)) + ("," if words == 1 else "")
        lines.append(f"{target} = {_VECTOR[bytes_]}(at({name}, {base}))")
        low, high = _UNPACK[extra.dtype.name]
        for j, variable in enumerate(variables):
            lines.append(f"{variable} = {(low, high)[j % 2]}(w{index}_{j // 2})")
        return variables
    for j, variable in enumerate(variables):
        lines.append(f"{variable} = load{index}({name}, u32({base} + u32({j * step})))")
    return variables


def _held_values(index: int, extra: Extra, width: int, lines: list[str]) -> list[str]:
    """Append lines that unpack the words ``h0 … h3``; returns a variable per channel."""
    low, high = _UNPACK[extra.dtype.name]
    variables = [f"v{index}_{j}" for j in range(width)]
    lines += [f"{v} = {(low, high)[j % 2]}(h{j // 2})" for j, v in enumerate(variables)]
    return variables


def held_operand(extras: Sequence[Extra], width: int) -> int | None:
    """The operand that a kernel may load ahead of the epilogue: 16 bytes at the output's offset.

    The residual of a network, as a rule; None if there is none.
    """
    for index, extra in enumerate(extras):
        if extra.mode == "same" and width == 8 and extra.dtype.name in _UNPACK:
            return index
    return None


def make_store(
    program: Program | None,
    extras: tuple[Extra, ...],
    dtype: DType,
    width: int,
    held: int | None = None,
) -> Any:
    """The device function that ends a kernel.

    Its parameters are ``(a0 … a[width-1], m, k, o, y, e0, e1, e2, e3)``: accumulators of channels
    ``k … k+width-1`` in row ``m``, the offset ``o`` in elements of the first one in ``y``, the
    output pointer, and the operands' pointers. For ``width > 1`` the channels lie next to each
    other in ``y`` and in every operand of mode ``same``, aligned to ``width`` elements; those of
    mode ``channel`` too.

    Args:
        program: epilogue; None stores the accumulators.
        extras: operands of its registers 1…
        dtype: output element type.
        width: 1, 2, 4 or 8.
        held: operand whose 16 bytes the kernel has loaded already (see `held_operand`); they follow
            the other parameters as four words ``h0 … h3``.
    """
    accs = [f"a{j}" for j in range(width)]
    params = [*accs, "m", "k", "o", "y", *(f"e{i}" for i in range(MAX_EXTRAS))]
    lines: list[str] = []
    operands = [
        _held_values(i, e, width, lines) if i == held else _load_extra(i, e, width, lines)
        for i, e in enumerate(extras)
    ]
    if held is not None:
        params += ["h0", "h1", "h2", "h3"]
    results = []
    for j in range(width):
        if program is None:
            results.append(accs[j])
            continue
        body, out = program.statements([accs[j], *(v[j] for v in operands)], prefix=f"t{j}_")
        lines += body
        results.append(out[0])
    bytes_ = width * dtype.itemsize
    pack = {"fp16": "pack_f16", "bf16": "pack_bf16"}.get(dtype.name)
    if pack and bytes_ in _VECTOR:
        words = [f"{pack}({results[2 * i]}, {results[2 * i + 1]})" for i in range(width // 2)]
        lines.append(f"st{width // 2}(at(y, u32(o)), {', '.join(words)})")
    elif dtype == FP32 and bytes_ in (8, 16):
        lines.append(f"st{width}(at(y, u32(o)), {', '.join(f'bits({r})' for r in results)})")
    else:
        lines += [f"store(y, u32(u32(o) + u32({j})), {r})" for j, r in enumerate(results)]
    text = f"def epilogue({', '.join(params)}):\n" + "".join(f"    {line}\n" for line in lines)
    namespace = program_namespace() | {
        "at": ptx.at,
        "bits": ptx.float_bits,
        "as_float": ptx.bits_float,
        "pack_f16": ptx.f16x2_from_f32,
        "pack_bf16": ptx.bf16x2_from_f32,
        "f16_lo": ptx.f32_from_f16_lo,
        "f16_hi": ptx.f32_from_f16_hi,
        "bf16_lo": ptx.f32_from_bf16_lo,
        "bf16_hi": ptx.f32_from_bf16_hi,
        "ld1": _ld1,
        "ld2": ptx.ld_global_nc_v2,
        "ld4": ptx.ld_global_nc_v4,
        "st1": ptx.st_global_u32,
        "st2": ptx.st_global_v2,
        "st4": ptx.st_global_v4,
        "store": storer(dtype),
        **{f"load{i}": loader(e.dtype) for i, e in enumerate(extras)},
    }
    return device_function(text, "epilogue", namespace)


@cuda.jit(device=True, inline="always")
def _ld1(address):
    return (ptx.ld_global_nc_u32(address),)
