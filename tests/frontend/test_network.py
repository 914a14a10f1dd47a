"""Networks defined in Python: what every layer computes, and what it refuses."""

from __future__ import annotations

import ast
import inspect

import numpy as np

import nrt
from nrt.dtypes import FP16
from nrt.frontend.network import Network
from nrt.frontend.network_math import MathLayers
from nrt.frontend.network_movement import MovementLayers
from nrt.ir.evaluate import evaluate
from nrt.ir.verify import verify

TOLERANCE = 1e-5
RNG = np.random.default_rng()


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def run(net: Network, **feeds) -> list[np.ndarray]:
    verify(net.graph)
    return list(evaluate(net.graph, feeds).values())


def check(build, expected, *shape: int) -> None:
    """``build(net, x)`` gives what NumPy's ``expected(x)`` does."""
    net = Network()
    net.output(build(net, net.input("x", shape)))
    x = normal(*shape)
    (found,) = run(net, x=x)
    want = np.asarray(expected(x))
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=TOLERANCE, atol=TOLERANCE)


def convolution(x, w, stride, pads, dilation=(1, 1), groups=1):
    """The definition, one output element at a time."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    filters, per_group, height, width = w.shape
    high = (x.shape[2] - (height - 1) * dilation[0] - 1) // stride[0] + 1
    wide = (x.shape[3] - (width - 1) * dilation[1] - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], filters, high, wide))
    for k in range(filters):
        first = k // (filters // groups) * per_group
        for p in range(high):
            for q in range(wide):
                rows = p * stride[0] + np.arange(height) * dilation[0]
                columns = q * stride[1] + np.arange(width) * dilation[1]
                part = x[:, first : first + per_group][:, :, rows][:, :, :, columns]
                y[:, k, p, q] = (part * w[k]).sum(axis=(1, 2, 3))
    return y


def test_conv2d() -> None:
    w, b = normal(6, 2, 3, 2), normal(6)
    check(
        lambda net, x: net.conv2d(
            x, w, b, stride=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2), groups=2
        ),
        lambda x: convolution(x, w, (2, 1), (1, 0, 2, 1), (1, 2), 2) + b[:, None, None],
        2,
        4,
        7,
        9,
    )
    check(
        lambda net, x: net.conv2d(x, w, padding=(1, 2), groups=2),
        lambda x: convolution(x, w, (1, 1), (1, 2, 1, 2), groups=2),
        1,
        4,
        5,
        6,
    )


def test_conv_transpose2d_is_the_adjoint_of_conv2d() -> None:
    w = normal(4, 3, 3, 2)  # of a convolution from 3 to 4 channels
    net = Network()
    up = net.conv_transpose2d(net.input("y", (1, 4, 5, 6)), w, stride=2, padding=1)
    net.output(up)
    x, y = normal(*up.shape), normal(1, 4, 5, 6)
    (back,) = run(net, y=y)
    forward = convolution(x, w, (2, 2), (1, 1, 1, 1))
    np.testing.assert_allclose((forward * y).sum(), (x * back).sum(), rtol=1e-4, atol=1e-4)


def test_products() -> None:
    w, b, m = normal(7, 5), normal(7), normal(5, 3)
    check(lambda net, x: net.linear(x, w, b), lambda x: x @ w.T + b, 2, 3, 5)
    check(lambda net, x: net.linear(x, w), lambda x: x @ w.T, 3, 5)
    check(lambda net, x: net.matmul(x, m), lambda x: x @ m, 4, 5)
    check(lambda net, x: x @ m, lambda x: x @ m, 4, 5)
    check(lambda net, x: w @ x, lambda x: w @ x, 5, 2)


def windows(x, kernel, stride):
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1]]


def test_pools() -> None:
    check(
        lambda net, x: net.max_pool2d(x, (3, 2), stride=2),
        lambda x: windows(x, (3, 2), (2, 2)).max(axis=(4, 5)),
        2,
        3,
        7,
        9,
    )
    check(
        lambda net, x: net.avg_pool2d(x, 3),
        lambda x: windows(x, (3, 3), (3, 3)).mean(axis=(4, 5)),
        1,
        3,
        7,
        9,
    )
    check(
        lambda net, x: net.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True),
        lambda x: windows(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (1, 1)).mean((4, 5)),
        1,
        2,
        5,
        4,
    )
    check(
        lambda net, x: net.adaptive_avg_pool2d(x, (2, 3)),
        lambda x: x.reshape(1, 2, 2, 3, 3, 3).mean(axis=(3, 5)),
        1,
        2,
        6,
        9,
    )
    check(
        lambda net, x: net.global_avg_pool(x), lambda x: x.mean((2, 3), keepdims=True), 2, 3, 5, 7
    )
    check(lambda net, x: net.global_max_pool(x), lambda x: x.max((2, 3), keepdims=True), 2, 3, 5, 7)


def test_activations() -> None:
    erf = np.vectorize(__import__("math").erf)
    cases = {
        "relu": lambda x: np.maximum(x, 0),
        "relu6": lambda x: np.clip(x, 0, 6),
        "sigmoid": sigmoid,
        "tanh": np.tanh,
        "leaky_relu": lambda x: np.where(x < 0, 0.01 * x, x),
        "elu": lambda x: np.where(x < 0, np.expm1(x), x),
        "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
        "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
        "gelu": lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2))),
        "silu": lambda x: x * sigmoid(x),
        "softplus": lambda x: np.log1p(np.exp(x)),
        "dropout": lambda x: x,
        "erf": erf,
        "exp": np.exp,
        "abs": np.abs,
        "neg": np.negative,
        "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
        "log_softmax": lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    }
    for name, expected in cases.items():
        check(lambda net, x, name=name: getattr(net, name)(x), expected, 3, 7)
    check(lambda net, x: net.clip(x, None, 0.25), lambda x: np.minimum(x, 0.25), 3, 7)
    check(
        lambda net, x: net.gelu(x, approximate=True),
        lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        3,
        7,
    )
    slope = normal(5, 1)
    check(lambda net, x: net.prelu(x, slope), lambda x: np.where(x < 0, slope * x, x), 2, 5, 3)
    check(lambda net, x: net.log(net.sqrt(net.abs(x))), lambda x: np.log(np.sqrt(np.abs(x))), 3, 7)


def test_arithmetic_and_operators() -> None:
    c = normal(7)
    pairs = [
        (lambda net, x: net.add(x, c), lambda x: x + c),
        (lambda net, x: net.sub(c, x), lambda x: c - x),
        (lambda net, x: net.mul(x, c), lambda x: x * c),
        (lambda net, x: net.div(x, c), lambda x: x / c),
        (lambda net, x: net.pow(x, 2), lambda x: x**2),
        (lambda net, x: net.min(x, c, 0.5), lambda x: np.minimum(np.minimum(x, c), 0.5)),
        (lambda net, x: net.max(x, c), lambda x: np.maximum(x, c)),
        (lambda net, x: net.where(net.less(x, 0), 0, x), lambda x: x * (x > 0)),
        (lambda net, x: net.where(net.greater(x, c), x, c), lambda x: np.maximum(x, c)),
        (lambda net, x: net.cast(net.equal(x, x), "fp32"), np.ones_like),
        (lambda _, x: 1 - (-x + 2) * 3 / 4, lambda x: 1 - (-x + 2) * 3 / 4),
        (lambda _, x: c + x, lambda x: c + x),
        (lambda _, x: 2 * x + c * x, lambda x: 2 * x + c * x),
        (lambda _, x: 1 / (x**2 + 1), lambda x: 1 / (x**2 + 1)),
    ]
    for build, expected in pairs:
        check(build, expected, 3, 7)


def test_reductions_and_normalizations() -> None:
    scale, bias, mean, var = normal(4), normal(4), normal(4), np.abs(normal(4)) + 0.5
    check(lambda net, x: net.reduce_mean(x, [1]), lambda x: x.mean(1, keepdims=True), 3, 4, 5)
    check(lambda net, x: net.reduce_sum(x, [-1], keepdims=False), lambda x: x.sum(-1), 3, 4, 5)
    check(lambda net, x: net.reduce_max(x, [0, 2]), lambda x: x.max((0, 2), keepdims=True), 3, 4, 5)
    check(lambda net, x: net.reduce_min(x, [0]), lambda x: x.min(0, keepdims=True), 3, 4)
    check(lambda net, x: net.reduce("l1", x, [1]), lambda x: np.abs(x).sum(1, keepdims=True), 3, 4)

    def wide(v):
        return v[:, None, None]

    check(
        lambda net, x: net.batch_norm(x, scale, bias, mean, var, epsilon=1e-3),
        lambda x: (x - wide(mean)) / np.sqrt(wide(var) + 1e-3) * wide(scale) + wide(bias),
        2,
        4,
        3,
        5,
    )

    def standard(x, axes):
        return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)

    check(
        lambda net, x: net.layer_norm(x, scale, bias),
        lambda x: standard(x, (-1,)) * scale + bias,
        3,
        4,
    )
    check(lambda net, x: net.layer_norm(x, scale), lambda x: standard(x, (-1,)) * scale, 3, 4)
    check(
        lambda net, x: net.instance_norm(x, scale, bias),
        lambda x: standard(x, (2, 3)) * wide(scale) + wide(bias),
        2,
        4,
        5,
        3,
    )

    def lrn(x):
        total = np.stack([(x[:, max(0, c - 1) : c + 2] ** 2).sum(1) for c in range(x.shape[1])], 1)
        return x / (2 + 0.3 / 3 * total) ** 0.75

    check(lambda net, x: net.lrn(x, 3, alpha=0.3, bias=2.0), lrn, 2, 5, 3, 3)


def test_movement() -> None:
    def padded(x):
        return np.pad(x, ((0, 0), (1, 0), (2, 1)), constant_values=7)

    c = normal(2, 1, 4)
    pairs = [
        (lambda net, x: net.reshape(x, (4, -1)), lambda x: x.reshape(4, 6)),
        (lambda net, x: net.flatten(x), lambda x: x.reshape(2, 12)),
        (lambda net, x: net.flatten(x, -1), lambda x: x.reshape(6, 4)),
        (lambda net, x: net.transpose(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1)),
        (lambda net, x: net.unsqueeze(x, [0, -1]), lambda x: x[None, ..., None]),
        (lambda net, x: net.squeeze(net.unsqueeze(x, [1])), lambda x: x),
        (lambda net, x: net.squeeze(net.unsqueeze(x, [1]), [1]), lambda x: x),
        (lambda net, x: net.concat([x, c, x]), lambda x: np.concatenate([x, c, x], 1)),
        (lambda net, x: net.split(x, [1, 2], axis=1)[1], lambda x: x[:, 1:]),
        (lambda net, x: net.slice(x, [1], [-1], axes=[2]), lambda x: x[..., 1:-1]),
        (lambda net, x: net.slice(x, [5], [-9], axes=[-1], steps=[-2]), lambda x: x[..., ::-2]),
        (lambda net, x: net.gather(x, [2, 0], axis=1), lambda x: x[:, [2, 0]]),
        (lambda net, x: net.gather(x, 1, axis=2), lambda x: x[..., 1]),
        (
            lambda net, x: net.expand(net.unsqueeze(x, [0]), (3, 2, 3, 4)),
            lambda x: np.stack([x] * 3),
        ),
        (lambda net, x: net.pad(x, [0, 1, 2, 0, 0, 1], value=7), padded),
    ]
    for build, expected in pairs:
        check(build, expected, 2, 3, 4)
    check(lambda net, x: net.resize(x, (4, 6)), lambda x: x.repeat(2, 2).repeat(2, 3), 1, 2, 2, 3)


def test_cast_and_input_types() -> None:
    net = Network()
    y = net.cast(net.input("x", (3,), "int32"), FP16)
    net.output(y + 0.5)
    x = np.asarray([1, -2, 3], np.int32)
    (found,) = run(net, x=x)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x + 0.5)


def test_float64_data_takes_the_dtype_of_the_layer() -> None:
    net = Network()
    x = net.input("x", (3,), "fp16")
    net.output(x * np.asarray([0.1, 0.2, 0.3]))
    assert [c.dtype.name for c in net.graph.constants] == ["fp16"]


def test_names() -> None:
    net = Network("n")
    x = net.input("x", (3,))
    for layer in (net.relu(x), net.relu(x), net.relu(x, name="mine"), net.relu(x), x + 1):
        net.output(layer)
    assert [n.name for n in net.graph.nodes] == ["relu", "relu_1", "mine", "relu_2", "add"]
    assert [n.origin for n in net.graph.nodes][2] == ("mine",)
    assert list(net.graph.outputs) == ["output", "output_1", "output_2", "output_3", "output_4"]
    assert net.name == "n"
    assert repr(x) == "Tensor(%x: fp32[3])"
    assert (x.name, x.dtype.name) == ("x", "fp32")


def test_every_layer_takes_a_name() -> None:
    """All layer methods but input, output, layer and the like have ``name=`` and a docstring."""
    for part in (MathLayers, MovementLayers, Network):
        for name, method in vars(part).items():
            if (
                inspect.isfunction(method)
                and not name.startswith("_")
                and name not in ("input", "output")
            ):
                assert "name" in inspect.signature(method).parameters, name
                assert method.__doc__, name


def test_the_package_exports_it() -> None:
    assert nrt.Network is Network
    assert ast.get_docstring(ast.parse(inspect.getsource(inspect.getmodule(Network))))
