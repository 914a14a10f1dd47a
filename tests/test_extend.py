"""Users' kernels: registered, checked, timed, chosen if they win, and what is refused."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import Build, build
from nrt.cpu_kernels import HostVariant
from nrt.cuda_kernels.compile_pool import CompilePool
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.dtypes import FP32
from nrt.errors import BuildError, ExtensionError, PlanError, TuningError
from nrt.extend import load_plugin
from nrt.extensions.registry import registry
from nrt.ir.ops import Elementwise, Softmax
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, Refusal, TensorSpec

RNG = np.random.default_rng()
TOLERANCE = 1e-5
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    with registry.scope():
        registry.clear()
        yield


def double() -> Any:
    """An op whose reference is slow, so that any kernel wins."""

    @nrt.op("my.domain", "Double")
    class Double(nrt.Op):
        def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
            return (x,)

        def reference(self, x: Any) -> tuple[Any, ...]:
            time.sleep(0.002)
            return (x * np.asarray(2, x.dtype),)

    return Double


def host(
    family: Any,
    compute: Callable[..., Any] | None = None,
    name: str = "mine",
    **methods: Any,
) -> type[HostVariant]:
    """A registered host variant that stores ``compute(*inputs)``."""

    def supports(self: Any, problem: Problem) -> Refusal | None:
        return None

    def bind(self: Any, problem: Problem, config: tuple[Any, ...]) -> Any:
        def call(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> None:
            assert compute is not None
            outputs[0][...] = compute(*inputs)

        return call

    body = {"__module__": __name__, "name": name, "supports": supports, "bind": bind, **methods}
    made: type[HostVariant] = nrt.variant(family)(type("Mine", (HostVariant,), body))
    return made


def doubles(op: Any) -> nrt.Network:
    net = nrt.Network("net")
    y = net.apply(op(), net.input("x", (5, 7)), name="first")
    net.output(net.apply(op(), net.reshape(y, (7, 5)), name="second"), "y")
    return net


def softmax() -> nrt.Network:
    net = nrt.Network("net")
    net.output(net.softmax(net.input("x", (5, 7)), name="softmax"), "y")
    return net


def rows(built: Build, layer: str, name: str = "mine") -> list[Any]:
    return [c for c in built.choices[layer].candidates if c.variant == name]


# -- the CPU target --------------------------------------------------------------------------------


def test_it_is_chosen_if_it_wins(tmp_path: Path) -> None:
    net = doubles(double())
    host("my.domain::Double", lambda x: x + x)
    built = build(net, target="cpu", opt_level=1)
    assert [layer.variant for layer in built.plan.layers] == ["mine", "mine"]
    (row,) = rows(built, "first")
    (slow,) = rows(built, "first", "cpu_reference")
    assert 0 < row.seconds < slow.seconds
    assert built.plan.notes == {"variant mine": "chosen for 2 of 2 layers"}
    engine = nrt.compile(net, target="cpu", opt_level=1)
    x = RNG.standard_normal((5, 7)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(engine(x)), 4 * x.reshape(7, 5))
    engine.save(tmp_path / "net.nrt")
    np.testing.assert_array_equal(
        np.asarray(nrt.load(tmp_path / "net.nrt")(x)), 4 * x.reshape(7, 5)
    )
    registry.host_variants.clear()
    with pytest.raises(
        PlanError, match=r"host kernel 'mine' is unknown.*variant that you registered.*--plugin"
    ):
        nrt.load(tmp_path / "net.nrt")


def test_a_built_in_family_has_one_more_candidate() -> None:
    def compute(x: Any) -> Any:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    for family in ("Softmax", Softmax):
        host(family, compute)
        built = build(softmax(), target="cpu", opt_level=1)
        (row,) = rows(built, "softmax")
        assert row.seconds > 0
        assert len(built.choices["softmax"].candidates) == 2


def test_a_wrong_result_is_reported_by_name_and_never_chosen() -> None:
    host("my.domain::Double" if double() else "", lambda x: x * 2.001)
    net = doubles(registry.ops.values[0])
    built = build(net, target="cpu", opt_level=1)
    assert [layer.variant for layer in built.plan.layers] == ["cpu_reference"] * 2
    for layer in ("first", "second"):
        (row,) = rows(built, layer)
        assert row.seconds is None
        assert row.note.startswith("wrong result: relative error 5.00e-04")
    note = built.plan.notes["variant mine"]
    assert note.startswith("chosen for 0 of 2 layers; at 'first': wrong result")


def test_an_edited_variant_is_checked_anew() -> None:
    """What the cache knows of a definition says nothing of the next one of that name."""
    net = doubles(double())
    for compute, chosen in (
        (lambda x: x * 2.5, "cpu_reference"),
        (lambda x: x + x, "mine"),
        (lambda x: x * 1.5, "cpu_reference"),
    ):
        host("my.domain::Double", compute)
        built = build(net, target="cpu", opt_level=1)
        assert built.plan.layers[0].variant == chosen


def test_where_nothing_is_measured_it_comes_behind_the_built_in_ones() -> None:
    net = doubles(double())
    host("my.domain::Double", lambda x: x * 7)
    host("Softmax", lambda x: x * 7, name="softer")
    assert build(net, target="cpu", opt_level=0).plan.layers[0].variant == "cpu_reference"
    built = build(softmax(), target="cpu", opt_level=0)
    assert built.plan.layers[0].variant == "cpu_rows"
    assert built.plan.notes == {"variant softer": "chosen for 0 of 1 layers"}


def test_what_it_refuses_is_in_the_notes() -> None:
    net = doubles(double())

    def supports(self: Any, problem: Problem) -> Refusal | None:
        return Refusal("5 rows are enough") if problem.y.shape[0] == 5 else None

    host("my.domain::Double", lambda x: x + x, supports=supports)
    built = build(net, target="cpu", opt_level=1)
    assert [layer.variant for layer in built.plan.layers] == ["cpu_reference", "mine"]
    assert built.plan.notes["variant mine"] == (
        "chosen for 1 of 2 layers; at 'first': 5 rows are enough"
    )


def test_a_redefined_op_keeps_its_variants() -> None:
    host("my.domain::Double" if double() else "", lambda x: x + x)
    again = double()
    built = build(doubles(again), target="cpu", opt_level=1)
    assert built.plan.layers[0].variant == "mine"


@pytest.mark.parametrize("method", ["supports", "bind", "configs", "workspace", "pack"])
def test_a_method_that_raises(method: str) -> None:
    def broken(self: Any, *_: Any) -> Any:
        raise KeyError("lost")

    host("MatMul", lambda a, b: a @ b, **{method: broken})
    net = nrt.Network("net")
    net.output(net.matmul(net.input("x", (5, 7)), np.ones((7, 3), np.float32)), "y")
    with pytest.raises(BuildError, match=rf"variant 'mine': {method} raised KeyError: 'lost'"):
        build(net, target="cpu", opt_level=1)


def test_a_call_that_raises() -> None:
    net = doubles(double())
    host("my.domain::Double", lambda x: x @ x)
    with pytest.raises(BuildError, match=r"variant 'mine' raised ValueError on Double\(fp32"):
        build(net, target="cpu", opt_level=1)


# -- GPUs ------------------------------------------------------------------------------------------

MODULE = """
from numba import cuda
from numba.cuda import types
import nrt
from nrt.cuda_kernels.variant import Emission, In, KernelSpec, Launch, Out, Scalar, Variant

def make(factor):
    def kernel(x, y, count):
        i = cuda.grid(1)
        if i < count:
            y[i] = x[i] * types.float32(factor)
    pointer = types.CPointer(types.float32)
    return kernel, types.void(pointer, pointer, types.int32)

@nrt.variant("my.domain::Double")
class Mine(Variant):
    name = "mine"
    factor = 2.0
    def supports(self, problem, device):
        return None
    def configs(self, problem, device):
        return [(64,)]
    def emit(self, problem, config, device):
        count = problem.y.size
        kernel = KernelSpec.of(make, (self.factor,), config[0])
        grid = (-(-count // config[0]), 1, 1)
        args = (In(0), Out(), Scalar(count, "i32"))
        return Emission((Launch(kernel, grid, (config[0], 1, 1), args),))
"""


@pytest.fixture
def module(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file of a user's with a kernel for `double`."""
    path = tmp_path / "my_doubles.py"
    path.write_text(MODULE)
    yield path
    sys.modules.pop("my_doubles", None)


def test_a_cuda_plan_holds_the_kernel(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_WORKERS", "2")  # compiled by a worker, which imports the file
    net = doubles(double())
    load_plugin(module)
    built = build(net, target="cuda:sm_80", opt_level=0)
    assert [layer.variant for layer in built.plan.layers] == ["mine", "mine"]
    assert len(built.plan.cubins) == 1
    assert [k.entry for k in built.plan.kernels] == ["nrt_make"]


def test_a_kernel_of_a_local_class() -> None:
    net = doubles(double())
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(MODULE, "<cell>", "exec"), scope)
    built = build(net, target="cuda:sm_80", opt_level=0)
    assert [layer.variant for layer in built.plan.layers] == ["mine", "mine"]


@pytest.mark.gpu
def test_on_a_gpu(module: Path) -> None:
    net = doubles(double())
    mine = load_plugin(module).Mine
    built = build(net, target="cuda", opt_level=1)
    assert [layer.variant for layer in built.plan.layers] == ["mine", "mine"]
    assert rows(built, "first")[0].seconds > 0
    x = RNG.standard_normal((5, 7)).astype(np.float32)
    engine = nrt.compile(net, target="cuda", opt_level=1)
    np.testing.assert_allclose(np.asarray(engine(x)), 4 * x.reshape(7, 5), rtol=1e-6)
    mine.factor = 2.5
    with pytest.raises(TuningError, match=r"no kernel gives a right result for .*mine.*wrong resu"):
        build(net, target="cuda", opt_level=1)


@pytest.mark.gpu
def test_the_example_on_a_gpu() -> None:
    example = load_plugin(EXAMPLES / "extend_variant.py")
    try:
        built = build(example.network(), target="cuda", opt_level=1)
        found = rows(built, "softmax", "row_softmax")
        assert [row.config for row in found if row.seconds is not None] == ["128"], found
    finally:
        sys.modules.pop("extend_variant")


def test_the_kernel_of_the_example_compiles() -> None:
    example = load_plugin(EXAMPLES / "extend_variant.py")
    try:
        spec = KernelSpec.of(example.row_softmax, (37,), 128)
        with CompilePool(ARCHS["sm_90a"], 2) as pool:
            cubin = pool.submit(spec).result(60)
        assert (cubin.entry, cubin.spills) == ("nrt_row_softmax", 0)
        device = ARCHS["sm_90a"]
        problem = Problem(Softmax(), (_spec(6, 37),), (_spec(6, 37),), (False,))
        (launch,) = example.RowSoftmax().emit(problem, (32,), device).launches
        assert (launch.grid, launch.args[2]) == ((1, 1, 1), Scalar(6, "i32"))
        assert example.RowSoftmax().supports(problem, device) is None
        refused = Problem(Softmax(0), (_spec(6, 37),), (_spec(6, 37),), (False,))
        assert "axis" in example.RowSoftmax().supports(refused, device).reason
    finally:
        sys.modules.pop("extend_variant")


def _spec(*shape: int) -> TensorSpec:
    return TensorSpec.dense(shape, FP32)


@pytest.mark.gpu
def test_a_wrong_kernel_of_a_built_in_family_on_a_gpu(module: Path) -> None:
    module.write_text(MODULE.replace('"my.domain::Double"', '"Softmax"'))
    load_plugin(module)
    built = build(softmax(), target="cuda", opt_level=1)
    assert built.plan.layers[0].variant != "mine"
    (row,) = rows(built, "softmax")
    assert row.note.startswith("wrong result")
    assert "wrong result" in built.plan.notes["variant mine"]


# -- what is refused -------------------------------------------------------------------------------


class Good(HostVariant):
    name = "good"

    def supports(self, problem: Problem) -> Refusal | None:
        return None

    def bind(self, problem: Problem, config: tuple[Any, ...]) -> Any:
        return None


class Cuda(Variant):
    name = "good"

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[tuple[Any, ...]]:
        return [()]

    def emit(self, problem: Problem, config: tuple[Any, ...], device: DeviceSpec) -> Emission:
        args = (In(0), Out(), Scalar(1, "u32"))
        return Emission((Launch(KernelSpec.of(double, (), 32), (1, 1, 1), (32, 1, 1), args),))


def _like(base: type, **body: Any) -> type:
    return type("Bad", (base,), {"__module__": __name__, **body})


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (int, "expected a class that derives from .*HostVariant, got <class 'int'>"),
        (Good(), "expected a class that derives from"),
        (_like(Good, name=""), "variant Bad: has no name; set name = 'my_kernel'"),
        (_like(HostVariant, name="mine"), r"variant 'mine': lacks bind\(\), supports\(\)"),
        (_like(Variant, name="mine"), r"variant 'mine': lacks configs\(\), emit\(\), supports\(\)"),
        (_like(Good, reference=True), "reference = True, but nrt checks it against"),
        (_like(Good, name="cpu_rows"), "'cpu_rows': is the name of one of nrt's own"),
        (_like(Cuda, name="pointwise_strided"), "'pointwise_strided': is the name of one of nrt's"),
        (_like(Good, __init__=lambda self, x: None), "cannot be made without arguments: .*'x'"),
    ],
)
def test_what_cannot_be_registered(cls: Any, message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        nrt.variant("Softmax")(cls)
    assert not registry.host_variants.names
    assert not registry.cuda_variants.names


def test_both_targets_may_use_a_name() -> None:
    nrt.variant("Softmax")(_like(Good))
    nrt.variant("Softmax")(_like(Cuda))
    assert registry.host_variants.names == registry.cuda_variants.names == ("good",)
    nrt.variant("Softmax")(_like(Good))  # the same definition again
    with pytest.raises(ExtensionError, match="variant 'good' is registered already"):
        nrt.variant("Softmax")(type("Other", (Good,), {"__module__": __name__}))


def test_families() -> None:
    with pytest.raises(ExtensionError, match="there is no op 'Sofmax'; did you mean 'Softmax'"):
        nrt.variant("Sofmax")
    with pytest.raises(ExtensionError, match="there is no op '3'; expected a class or name"):
        nrt.variant(3)  # type: ignore[arg-type]

    @nrt.op("my.domain", "Scale")
    class Scale(Elementwise):
        def program(self, kinds: tuple[str, ...]) -> Program:
            b = Builder(kinds)
            return b.build(b("add", 0, 0))

    with pytest.raises(ExtensionError, match=r"my.domain::Scale has a pointwise program"):
        nrt.variant(Scale)


# -- plug-ins --------------------------------------------------------------------------------------


def test_a_plugin_is_run_once(tmp_path: Path) -> None:
    path = tmp_path / "my_plugin.py"
    path.write_text("import nrt\ncalls = []\nf = nrt.pointwise('F', lambda x: x + 1)\n")
    try:
        first = load_plugin(path)
        assert registry.pointwise.names == ("F",)
        assert load_plugin(str(path)) is first
        other = tmp_path / "other" / "my_plugin.py"
        other.parent.mkdir()
        other.write_text("import nrt\nnrt.pointwise('G', lambda x: x + 1)\n")
        assert load_plugin(other) is not first
        assert registry.pointwise.names == ("F", "G")
        assert load_plugin(other) is load_plugin(other)
    finally:
        for name in [n for n in sys.modules if n.startswith("my_plugin")]:
            del sys.modules[name]


def test_plugins_that_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    for path in (tmp_path / "absent.py", text, tmp_path):
        with pytest.raises(ExtensionError, match=r"expected the path of a Python file \(.py\)"):
            load_plugin(path)
    broken = tmp_path / "my_broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(
        ExtensionError, match=r"plug-in .*my_broken.py: ZeroDivisionError: division by zero"
    ) as caught:
        load_plugin(broken)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "my_broken" not in sys.modules
