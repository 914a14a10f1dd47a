"""A user's functions in other processes: by file and hash, or not at all."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nrt.cuda_kernels.compile_pool import CompilePool
from nrt.cuda_kernels.compiler import compile_kernel, kernel_key
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.variant import KernelSpec
from nrt.errors import CompileError, ExtensionError
from nrt.extensions.user_code import load_file, user_code

SM80 = ARCHS["sm_80"]
SECONDS = 60
KERNEL = """
from numba.cuda import types
from nrt.cuda_kernels import ptx
from {beside} import AMOUNT

def make(count):
    def kernel(x):
        for k in range(count):
            x[k] += AMOUNT
    return kernel, types.void(types.CPointer(types.float32))

class Thing:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a module beside it, and a package of two; none is imported afterwards."""
    folder = tmp_path / "src"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_amount.py").write_text("AMOUNT = 1.5\n")
    (folder / "my_kernels.py").write_text(KERNEL.format(beside="my_amount"))
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "amount.py").write_text("AMOUNT = 2.5\n")
    (folder / "my_package" / "kernels.py").write_text(KERNEL.format(beside=".amount"))
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def load(name: str) -> ModuleType:
    for known in [m for m in sys.modules if m.startswith("my_")]:
        del sys.modules[known]
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["my_kernels", "my_package.kernels"])
def test_a_module_is_imported_by_the_workers(folder: Path, name: str) -> None:
    module = load(name)
    spec = KernelSpec.of(module.make, (3,), 32)
    assert spec.factory == f"{name}:make"
    assert spec.code is not None
    assert spec.code.file == module.__file__
    assert "nrt.cuda_kernels.ptx" in spec.code.uses
    with CompilePool(SM80, 2) as pool:
        cubin = pool.submit(spec).result(SECONDS)
        assert len(pool._processes) == 1
    assert cubin == compile_kernel(spec, SM80, cache=False)
    assert cubin.entry == "nrt_make"


def _edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n# edited\n")


@pytest.mark.parametrize(
    ("name", "edited", "matters"),
    [
        ("my_kernels", "my_kernels.py", True),
        ("my_kernels", "my_amount.py", True),
        ("my_kernels", "my_package/amount.py", False),
        ("my_package.kernels", "my_package/amount.py", True),
        ("my_package.kernels", "my_amount.py", False),
    ],
)
def test_the_hash_is_of_the_module_and_what_it_imports_beside_it(
    folder: Path, name: str, edited: str, matters: bool
) -> None:
    before = user_code(load(name).Thing).digest
    assert user_code(load(name).Thing).digest == before
    _edit(folder / edited)
    assert (user_code(load(name).Thing).digest != before) == matters


def test_an_edited_kernel_has_another_cubin(folder: Path) -> None:
    user_code(load("my_kernels").Thing)  # as registering a variant does
    first = KernelSpec.of(load("my_kernels").make, (3,), 32)
    (folder / "my_amount.py").write_text("AMOUNT = 7.5\n")
    user_code(load("my_kernels").Thing)
    second = KernelSpec.of(load("my_kernels").make, (3,), 32)
    assert kernel_key(first, SM80) != kernel_key(second, SM80)
    assert first != second


def test_a_file_that_changed_since_it_was_imported(folder: Path) -> None:
    module = load("my_kernels")
    user_code(module.Thing)
    _edit(folder / "my_kernels.py")
    spec = KernelSpec.of(module.make, (3,), 32)
    with (
        CompilePool(SM80, 2) as pool,
        pytest.raises(CompileError, match=r"my_kernels.py or a module beside it has changed since"),
    ):
        pool.submit(spec).result(SECONDS)


@pytest.mark.slow
def test_a_file_that_was_imported_again(folder: Path) -> None:
    module = load("my_kernels")
    first = KernelSpec.of(module.make, (3,), 32)
    _edit(folder / "my_kernels.py")
    assert KernelSpec.of(module.make, (4,), 32).code == first.code
    second = KernelSpec.of(importlib.reload(module).make, (3,), 32)
    assert second.code != first.code
    with CompilePool(SM80, 2) as pool:
        assert pool.submit(second).result(SECONDS).entry == "nrt_make"


@pytest.mark.slow
def test_a_module_that_a_worker_cannot_import(folder: Path) -> None:
    path = folder / "my_kernels.py"
    path.write_text(
        "import sys\nassert 'pytest' in sys.modules, 'only in the tests'\n" + path.read_text()
    )
    spec = KernelSpec.of(load("my_kernels").make, (3,), 32)
    with (
        CompilePool(SM80, 2) as pool,
        pytest.raises(CompileError, match=r"my_kernels.py: AssertionError: only in the tests"),
    ):
        pool.submit(spec).result(SECONDS)


def test_a_name_that_the_file_does_not_define(folder: Path) -> None:
    module = load("my_kernels")
    path = folder / "my_kernels.py"
    path.write_text(path.read_text() + "import sys\nif 'pytest' not in sys.modules: del make\n")
    module = load("my_kernels")
    spec = KernelSpec.of(module.make, (3,), 32)
    with (
        CompilePool(SM80, 2) as pool,
        pytest.raises(CompileError, match=r"my_kernels.py defines no make"),
    ):
        pool.submit(spec).result(SECONDS)


def local_factory(amount: float) -> Any:
    from numba.cuda import types

    def make(count: int) -> Any:
        def kernel(x):
            for k in range(count):
                x[k] += amount

        return kernel, types.void(types.CPointer(types.float32))

    return make


def test_a_local_function_is_compiled_in_this_process(tmp_path: Path) -> None:
    first, second = (KernelSpec.of(local_factory(a), (3,), 32) for a in (1.0, 2.0))
    assert first != second
    with CompilePool(SM80, 2) as pool:
        one, two = (f.result(SECONDS) for f in pool.submit_all([first, second]))
        assert pool._processes == []
    assert one.code != two.code
    assert one.entry == "nrt_local_factory__locals__make"
    assert not (tmp_path / "cache" / "cubins").exists()


def test_a_notebook_cell() -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    source = KERNEL.format(beside="math").replace("AMOUNT", "pi")
    for _ in range(2):
        exec(compile(source, "<cell 1>", "exec"), scope)
        spec = KernelSpec.of(scope["make"], (3,), 32)
        assert spec.code is not None
        assert spec.code.file is None
        with CompilePool(SM80, 2) as pool:
            assert pool.submit(spec).result(SECONDS).entry == "nrt_make"
            assert pool._processes == []


def test_what_only_another_process_has() -> None:
    from dataclasses import replace

    code = replace(user_code(local_factory(1.0)), digest="another")
    with pytest.raises(CompileError, match="make exists only in the process that defined it"):
        code.resolve()


def test_another_file_of_the_name_is_on_the_path(folder: Path, tmp_path: Path) -> None:
    """It is found first, and raises; the right one is imported all the same."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "my_alone.py").write_text("VALUE = 3\n")
    (folder / "my_alone.py").write_text("1 / 0\n")
    assert load_file(other / "my_alone.py", "my_alone").VALUE == 3


def test_what_is_no_function() -> None:
    with pytest.raises(ExtensionError, match=r"KernelSpec.of: expected a function, got partial"):
        KernelSpec.of(partial(local_factory, 1.0), (3,), 32)


def test_a_string_that_names_no_module_of_nrt() -> None:
    with pytest.raises(
        CompileError,
        match=r"kernel nope\(3,\) does not compile since .*write KernelSpec.of\(nope, params",
    ):
        compile_kernel(KernelSpec("tests.no_module:nope", (3,), 32), SM80, cache=False)
