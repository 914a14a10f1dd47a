"""A user's function or class, as another process finds it, and a hash of what it depends on.

Kernels are compiled by worker processes, which must come by the function that makes a kernel. A
function of a module that lies in a file is named by that file, with a hash: a worker imports the
file and refuses one that has changed since. A function of ``__main__``, of a notebook's cell or
inside another function is in no module that could be imported without running a program again; its
kernels are compiled in the process that has it.

The hash covers the file and the user's own modules that it imports from the folder beside it. It is
part of the address of cubins and timings, so that an edited kernel is compiled, checked and timed
anew. Code without a file has a number of its own instead, drawn once per definition: nothing that
is known of it outlives the process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from nrt.errors import CompileError

__all__ = ["UserCode", "load_file", "user_code"]


@dataclass(frozen=True)
class UserCode:
    """Where a function or class of the user's comes from.

    Attributes:
        module: name of its module. name: qualified name in it.
        digest: hash of the sources; a number of its own where there is no file.
        file: of the module; None where only this process has the function.
        lasting: whether ``digest`` means the same in other processes.
        uses: modules of nrt that the sources import.
        search: where this process looks for modules.
    """

    module: str
    name: str
    digest: str
    file: str | None = field(default=None, repr=False)
    lasting: bool = True
    uses: tuple[str, ...] = ()
    search: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def resolve(self) -> Any:
        """The function or class itself, imported from the file.

        Raises:
            CompileError: the file cannot be imported, has changed, or lacks the name.
        """
        if self.file is None:
            raise CompileError(
                f"{self.module}.{self.name} exists only in the process that defined it"
            )
        sys.path.extend(p for p in self.search if p not in sys.path)
        found: Any = sys.modules.get(self.module)
        if found is None or Path(getattr(found, "__file__", None) or "") != Path(self.file):
            found = load_file(Path(self.file), self.module)
        for part in self.name.split("."):
            found = getattr(found, part, None)
        if _sources(self.file)[0] != self.digest:
            raise CompileError(
                f"{self.file} or a module beside it has changed since '{self.module}' was "
                "imported; import it again (importlib.reload), or start the program again"
            )
        if found is None:
            raise CompileError(f"{self.file} defines no {self.name}; define it in the module")
        return found


# Caches: what was found out of an object lives as long as the object.
_KNOWN: WeakKeyDictionary[Any, UserCode] = WeakKeyDictionary()
_AT_IMPORT: dict[str, tuple[Any, tuple[str, tuple[str, ...]]]] = {}
"""File -> the import that it was read after (every import has its own spec), and `_sources` then.

Registering a class reads its file, so that is done while the file is imported."""


def user_code(thing: Callable[..., Any]) -> UserCode:
    """Where a function or class comes from; the same object always gives the same answer."""
    if thing not in _KNOWN:
        _KNOWN[thing] = _found(thing)
    return _KNOWN[thing]


def _found(thing: Any) -> UserCode:
    name, qualname = thing.__module__, thing.__qualname__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not Path(file).is_file():
        return UserCode(name, qualname, uuid.uuid4().hex, lasting=False)
    spec = getattr(module, "__spec__", None)
    if file not in _AT_IMPORT or _AT_IMPORT[file][0] is not spec:
        _AT_IMPORT[file] = (spec, _sources(file))
    digest, uses = _AT_IMPORT[file][1]
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    # A decorator runs before its class has its name in the module.
    reachable = found is thing or (isinstance(thing, type) and _has_class(file, qualname))
    if name == "__main__" or not reachable:
        # Several things of one file may share a name that is none of the module's.
        unique = digest if reachable else uuid.uuid4().hex
        return UserCode(name, qualname, unique, None, reachable, uses)
    return UserCode(name, qualname, digest, file, True, uses, tuple(sys.path))


def _has_class(file: str, qualname: str) -> bool:
    """Whether the source defines a class of this name."""
    body: list[ast.stmt] = ast.parse(Path(file).read_bytes()).body
    for part in qualname.split("."):
        found = [n for n in body if isinstance(n, ast.ClassDef) and n.name == part]
        if not found:
            return False
        body = found[-1].body
    return True


def load_file(path: Path, name: str) -> ModuleType:
    """Import the module ``name`` from ``path``.

    Raises:
        CompileError: the file raised; the error is the cause.
    """
    root = _root(path)  # as Python found it: a link stays a link
    relative = path.with_suffix("").relative_to(root)
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    try:
        if ".".join(parts) == name:
            if str(root) not in sys.path:
                sys.path.append(str(root))
            # Another file of the name may come first.
            found = importlib.util.find_spec(name)
            if found is not None and found.origin == str(path):
                return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise CompileError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    except CompileError:
        raise
    except Exception as error:
        # A user's file may raise anything; it stays the cause.
        raise CompileError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def _root(path: Path) -> Path:
    """The folder that a module's absolute imports start from."""
    folder = path.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def _sources(file: str) -> tuple[str, tuple[str, ...]]:
    """Hash of a module with the modules beside it that it imports, and what it uses of nrt."""
    start = Path(file).resolve()
    root = _root(start)
    uses: set[str] = set()
    texts: dict[Path, bytes] = {}
    stack = [start]
    while stack:
        path = stack.pop()
        if path in texts:
            continue
        texts[path] = path.read_bytes()
        for name in _imports(texts[path], _package(path, root)):
            if name.partition(".")[0] == "nrt":
                uses.add(name)
            base = root.joinpath(*name.split("."))
            stack += [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]
    digest = hashlib.sha256()
    for path in sorted(texts):
        digest.update(f"{path.relative_to(root)}\n{len(texts[path])}\n".encode() + texts[path])
    return digest.hexdigest(), tuple(sorted(uses))


def _package(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts[:-1]


@cache
def _imports(source: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Names of modules, and of what may be one, that ``source`` imports."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()  # nothing can have imported it
    return tuple(dict.fromkeys(_walk(tree, package)))


def _walk(tree: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from filter(None, [module])
            yield from (f"{module}.{alias.name}".strip(".") for alias in node.names)
