"""Kernels to cubins, without a GPU: Numba to PTX, PTX through nvJitLink.

A cubin is known by the hash of all that it depends on: the source of its factory's module and of
the modules every kernel uses, the factory's parameters, the architecture and the toolchain's
versions. Names in the PTX are made stable, so that the same kernel gives the same bytes in every
process.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrt.cuda_kernels.dependent_launch import MINIMUM_CC, with_dependent_launch
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import KernelSpec
from nrt.errors import CompileError
from nrt.settings import settings

__all__ = ["Cubin", "cached_kernel", "compile_kernel", "kernel_key", "toolchain"]

# A binary depends on its factory's module, on all that it imports from these places, and on this
# module.
_SOURCES = ("nrt.cuda_kernels.", "nrt.ir.pointwise")


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel.

    Attributes:
        code: the ELF image.
        entry: name of the function.
        registers: per thread.
        spills: bytes per thread that left the registers: spills and indexed local arrays.
        shared: bytes of static shared memory.
    """

    code: bytes
    entry: str
    registers: int
    spills: int
    shared: int


@functools.cache
def toolchain() -> dict[str, str]:
    """Versions that a binary depends on."""
    names = (
        "numba-cuda",
        "numba",
        "llvmlite",
        "cuda-core",
        "nvidia-cuda-nvcc",
        "nvidia-nvvm",
        "nvidia-nvjitlink",
    )
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _source(module: str) -> str:
    path = importlib.import_module(module).__file__
    if path is None:
        raise CompileError(f"module {module} has no source file")
    return Path(path).read_text(encoding="utf-8")


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """Modules of kernel source that ``module`` imports itself."""
    found = set()
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(name for name in found if name.startswith(_SOURCES) and name in sys.modules)


@functools.cache
def _source_hash(*modules: str) -> str:
    """Hash of the sources that a factory in these modules may draw on."""
    seen: set[str] = set()
    stack = [*modules, __name__]
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack.extend(_imports(name))
    text = "\n".join(f"{name}\n{_source(name)}" for name in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_kernel_module(name: str) -> bool:
    if not name.startswith(_SOURCES):
        return False
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False  # a function of a module
    return True


def kernel_key(spec: KernelSpec, device: DeviceSpec) -> str:
    """Content address of the cubin of ``spec`` for ``device``'s architecture."""
    if spec.code is None:
        modules: tuple[str, ...] = (spec.factory.partition(":")[0],)
    else:
        # Of the user's own sources it holds a hash; of nrt's they use what any kernel may.
        modules = tuple(filter(_is_kernel_module, spec.code.uses))
    parts = [
        _source_hash(*modules),
        repr(spec),
        device.arch,
        json.dumps(toolchain(), sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def compile_kernel(spec: KernelSpec, device: DeviceSpec, *, cache: bool = True) -> Cubin:
    """The cubin of ``spec``, from the cache or compiled now.

    Args:
        spec: what to compile.
        device: gives the architecture; no GPU is touched.
        cache: read and write ``NRT_CACHE_DIR/cubins``; a kernel of a notebook's is never there.

    Raises:
        CompileError: Numba or the linker refused (the message names the kernel and its parameters),
            or the cache cannot be written.
    """
    path = _cache_path(spec, device) if cache else None
    if path is None:
        return _compile(spec, device)
    cached = _read(path)
    if cached is not None:
        return cached
    cubin = _compile(spec, device)
    fields = {name: getattr(cubin, name) for name in _HEADER}
    header = json.dumps({**fields, "sha256": hashlib.sha256(cubin.code).hexdigest()})
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(header.encode() + b"\n" + cubin.code)
        Path(name).replace(path)
    except OSError as error:
        raise CompileError(
            f"cubin cache {folder}: cannot be written ({error}); set NRT_CACHE_DIR to a folder "
            "that can"
        ) from error
    return cubin


def cached_kernel(spec: KernelSpec, device: DeviceSpec) -> Cubin | None:
    """The cubin of ``spec`` if it is in the cache; nothing is compiled."""
    path = _cache_path(spec, device)
    return None if path is None else _read(path)


def _cache_path(spec: KernelSpec, device: DeviceSpec) -> Path | None:
    """Where the cubin of ``spec`` is kept; None for a kernel that outlives no process."""
    if spec.code is not None and not spec.code.lasting:
        return None
    key = kernel_key(spec, device)
    return settings().cache_dir / "cubins" / key[:2] / f"{key}.cubin"


_HEADER = ("entry", "registers", "spills", "shared")


def _read(path: Path) -> Cubin | None:
    """The cubin in the cache's file; None if it is absent or damaged (it is then written anew)."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = json.loads(head)
    except ValueError:
        return None
    if not isinstance(data, dict) or set(data) != {*_HEADER, "sha256"}:
        return None
    if data["sha256"] != hashlib.sha256(code).hexdigest():
        return None
    return Cubin(code, *(data[name] for name in _HEADER))


def _compile(spec: KernelSpec, device: DeviceSpec) -> Cubin:
    from cuda.core import Linker, LinkerOptions, ObjectCode

    text, entry = _ptx(spec, device)
    try:
        linker = Linker(
            ObjectCode.from_ptx(text.encode()),
            options=LinkerOptions(arch=device.arch, ptxas_options=["-v"]),
        )
        code = bytes(linker.link("cubin").code)
        log = linker.get_info_log() or ""
    except Exception as error:
        # nvJitLink's and the driver's error classes share no base but Exception either; the text
        # holds the linker's log, with a zero at its end.
        why = str(error).rstrip("\0 \n")
        label = _label(spec)
        raise CompileError(f"kernel {label} does not link for {device.arch}: {why}") from error
    return Cubin(code, entry, *_resources(log), _static_shared(text))


def _label(spec: KernelSpec) -> str:
    return f"{spec.factory.partition(':')[2]}{spec.params}"


def _factory(spec: KernelSpec) -> Any:
    if spec.local is not None:
        return spec.local
    if spec.code is not None:
        return spec.code.resolve()
    module, _, function = spec.factory.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise CompileError(
            f"kernel {_label(spec)} does not compile since its factory '{spec.factory}' cannot be "
            f"imported: {error}; for a function of your own write "
            f"KernelSpec.of({function}, params, threads)"
        ) from error


# A cache operator stands before the .nc, other hints behind it; ordinary loads have them too.
_READ_ONLY = re.compile(r"(ld\.global(?:\.c[ags])?)\.nc\b")


def _ptx(spec: KernelSpec, device: DeviceSpec) -> tuple[str, str]:
    """The PTX of ``spec`` and the name of its entry."""
    from numba import cuda

    factory = _factory(spec)
    try:
        kernel, signature = factory(*spec.params)
        ptx, _ = cuda.compile(
            kernel,
            signature,
            cc=device.compile_cc,
            output="ptx",
            device=False,
            abi="numba",
            launch_bounds=(spec.threads, spec.min_blocks),
        )
    except Exception as error:
        # Numba's CUDA target has error classes of its own that share no base but Exception, and a
        # factory may fail in any way: in a worker process only a CompileError finds its way back.
        label = _label(spec)
        raise CompileError(f"kernel {label} does not compile for {device.arch}: {error}") from error
    function = spec.factory.partition(":")[2]
    entry = f"nrt_{re.sub(r'[^0-9A-Za-z_]', '_', function).lstrip('_')}"
    text = _stable_names(ptx if isinstance(ptx, str) else ptx.decode(), entry)
    if spec.coherent:
        text = _READ_ONLY.sub(r"\1", text)
    return (with_dependent_launch(text) if device.cc >= MINIMUM_CC else text), entry


def _stable_names(ptx: str, entry: str) -> str:
    """Replace the mangled names, which count compilations, by names of our own."""
    match = re.search(r"\.entry\s+([\w$]+)", ptx)
    if match is None:
        raise CompileError(f"{entry}: the PTX has no entry")
    text = ptx.replace(match.group(1), entry)
    # Numba's per-function environment: unused on the GPU, and its name holds a counter.
    return re.sub(r"\.common \.global \.align 8 \.u64 _ZN08NumbaEnv[\w$]*;\n", "", text)


def _static_shared(ptx: str) -> int:
    """Bytes of static shared memory: ptxas -v leaves out what is declared outside the kernel."""
    return sum(map(int, re.findall(r"(?<!extern) \.shared \.align \d+ \.b8 [\w$]+\[(\d+)\]", ptx)))


def _resources(log: Any) -> tuple[int, int]:
    """Registers and bytes of local memory from ptxas -v."""
    text = log if isinstance(log, str) else log.decode()

    def last(pattern: str) -> int:
        found = re.findall(pattern, text)
        return int(found[-1]) if found else 0

    return (
        last(r"Used (\d+) registers"),
        last(r"(\d+) bytes stack frame")
        + last(r"(\d+) bytes spill stores")
        + last(r"(\d+) bytes spill loads"),
    )
