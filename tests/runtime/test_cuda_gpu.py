"""The CUDA layer and executor on a real device."""

from __future__ import annotations

import functools
import re
import threading
from typing import Any

import numpy as np
import pytest

from nrt.errors import DeviceError, InputError
from nrt.runtime import DeviceTensor, Engine
from nrt.runtime.cuda import CudaDevice, open_device
from nrt.runtime.timing import measure

from .sum_plan import N, check, numbers, plan

# fp32 against NumPy: one multiply-add may be fused.
RTOL = 1e-6


def compile_cubin(kernels: list[tuple[Any, Any]], arch: str) -> tuple[bytes, list[str]]:
    """One cubin with several entry points, and their names."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba import cuda

    digits = re.fullmatch(r"sm_(\d+)(\d)(a?)", arch)
    assert digits is not None
    cc = (int(digits[1]), int(digits[2]), *filter(None, digits[3]))
    objects, names = [], []
    for fn, signature in kernels:
        ptx, _ = cuda.compile(
            fn, signature, cc=cc, output="ptx", device=False, abi="numba", launch_bounds=(1024, 1)
        )
        entry = re.search(r"\.entry\s+([\w$]+)", ptx)
        assert entry is not None
        names.append(entry[1])
        objects.append(ObjectCode.from_ptx(ptx.encode()))
    linked = Linker(*objects, options=LinkerOptions(arch=arch)).link("cubin")
    return bytes(linked.code), names


@functools.cache
def binary(arch: str) -> tuple[bytes, list[str]]:
    from numba import cuda, types

    f32, u32 = types.CPointer(types.float32), types.uint32

    def add(a: Any, b: Any, out: Any, count: Any) -> None:
        i = cuda.grid(1)
        while i < count:
            out[i] = a[i] + b[i]
            i += cuda.gridsize(1)

    def scale(a: Any, out: Any, factor: Any, count: Any, nothing: Any) -> None:
        i = cuda.grid(1)
        while i < count:
            out[i] = a[i] * factor
            i += cuda.gridsize(1)

    def reverse(a: Any, out: Any, count: Any) -> None:
        kept = cuda.shared.array(0, types.float32)
        i = cuda.threadIdx.x
        while i < count:
            kept[count - 1 - i] = a[i]
            i += cuda.blockDim.x
        cuda.syncthreads()
        i = cuda.threadIdx.x
        while i < count:
            out[i] = kept[i]
            i += cuda.blockDim.x

    return compile_cubin(
        [
            (add, types.void(f32, f32, f32, u32)),
            (scale, types.void(f32, f32, types.float32, u32, f32)),
            (reverse, types.void(f32, f32, u32)),
        ],
        arch,
    )


def test_the_binary_compiles_without_a_gpu() -> None:
    code, names = binary("sm_80")
    assert code[:4] == b"\x7fELF"
    assert len(set(names)) == 3


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return open_device()


@pytest.fixture(scope="module")
def kernels(device: CudaDevice) -> list[Any]:
    code, names = binary(device.info.arch)
    return [device.load(code, name) for name in names]


@pytest.fixture(scope="module")
def engine(device: CudaDevice) -> Engine:
    code, names = binary(device.info.arch)
    return Engine(plan(code, names[:2], device.info.arch), device=device)


gpu = pytest.mark.gpu


@gpu
def test_info(device: CudaDevice) -> None:
    info = device.info
    assert re.fullmatch(r"sm_\d+a?", info.arch)
    assert info.arch.endswith("a") == (info.cc == (9, 0))
    assert info.multiprocessors > 0
    assert info.l2_bytes > 1 << 18
    assert 48 << 10 <= info.shared_per_block <= info.shared_per_sm
    assert info.memory_bytes > 1 << 30
    assert float(info.driver) >= 12


@gpu
def test_no_such_device() -> None:
    with pytest.raises(DeviceError, match=r"CUDA device 99 does not exist: .*`nrt doctor`"):
        open_device(99)


@gpu
@pytest.mark.parametrize("nbytes", [0, 1, 255, 256, 1_000_003])
def test_memory(device: CudaDevice, nbytes: int) -> None:
    data = np.random.default_rng().integers(0, 256, nbytes).astype(np.uint8)
    first, second = device.alloc(nbytes), device.alloc(nbytes)
    assert first.ptr % 256 == 0
    device.upload(first, data)
    device.copy(second.ptr, first.ptr, nbytes)
    np.testing.assert_array_equal(device.download(second, (nbytes,), np.uint8), data)
    device.fill(first, 0xAB, nbytes // 2)
    back = device.download(first, (nbytes,), np.uint8)
    np.testing.assert_array_equal(back[: nbytes // 2], data[: nbytes // 2])
    assert (back[nbytes // 2 :] == 0xAB).all()
    first.free()
    first.free()


@gpu
def test_copies_that_do_not_fit(device: CudaDevice) -> None:
    buffer = device.alloc(64)
    with pytest.raises(
        DeviceError, match="upload of 40 bytes at offset 32 does not fit a buffer of"
    ):
        device.upload(buffer, np.zeros(10, np.float32), 32)
    with pytest.raises(DeviceError, match="upload of a non-contiguous array"):
        device.upload(buffer, np.zeros((4, 4), np.float32).T[:2])
    with pytest.raises(DeviceError, match="download of 128 bytes"):
        device.download(buffer, (32,), np.float32)
    with pytest.raises(DeviceError, match=r"allocation of .* failed: CUDA_ERROR_OUT_OF_MEMORY"):
        device.alloc(1 << 50)


@gpu
def test_pinned_memory_and_streams(device: CudaDevice) -> None:
    stream, event = device.stream(), device.event()
    source, target, buffer = device.pinned(4096), device.pinned(4096), device.alloc(4096)
    source.array[:] = np.random.default_rng().integers(0, 256, 4096)
    device.copy_from_host(buffer.ptr, source.ptr, 4096, stream)
    device.record(stream, event)
    other = device.stream()
    device.wait(other, event)
    device.copy_to_host(target.ptr, buffer.ptr, 4096, other)
    device.synchronize(other)
    np.testing.assert_array_equal(target.array, source.array)


def upload(device: CudaDevice, array: Any) -> Any:
    buffer = device.alloc(array.nbytes)
    device.upload(buffer, array)
    return buffer


@gpu
@pytest.mark.parametrize("count", [1, 37, 100_003])
def test_launch(device: CudaDevice, kernels: list[Any], count: int) -> None:
    a, b = (np.random.default_rng().standard_normal(count).astype(np.float32) for _ in "ab")
    x, y, out = upload(device, a), upload(device, b), device.alloc(a.nbytes)
    stream = device.stream()
    device.launch(
        stream, kernels[0], (7, 1, 1), (96, 1, 1), [x.ptr, y.ptr, out.ptr, (count, "u32")]
    )
    device.launch(
        stream,
        kernels[1],
        (3, 1, 1),
        (64, 1, 1),
        [out.ptr, out.ptr, (2.5, "f32"), (count, "u32"), 0],
    )
    found = device.download(out, a.shape, a.dtype, stream=stream)
    np.testing.assert_allclose(found, (a + b) * np.float32(2.5), rtol=RTOL, atol=1e-6)
    assert kernels[0].registers > 0
    assert kernels[0].local_bytes == 0


@gpu
def test_arguments_that_do_not_fit(device: CudaDevice, kernels: list[Any]) -> None:
    stream = device.stream()
    one = (1, 1, 1)
    with pytest.raises(
        DeviceError, match=r"2 arguments of \(8, 4\) bytes given, the kernel takes 4"
    ):
        device.launch(stream, kernels[0], one, one, [0, (1, "u32")])
    with pytest.raises(DeviceError, match=r"arguments of \(8, 8, 8, 8\) bytes given"):
        device.launch(stream, kernels[0], one, one, [0, 0, 0, (1, "u64")])
    with pytest.raises(DeviceError, match="argument type 'f16', expected one of u32"):
        device.launch(stream, kernels[0], one, one, [0, 0, 0, (1, "f16")])
    with pytest.raises(DeviceError, match="launch of"):
        device.launch(stream, kernels[0], one, (4096, 1, 1), [0, 0, 0, (0, "u32")])


@gpu
def test_more_than_48_kilobytes_of_shared_memory(device: CudaDevice, kernels: list[Any]) -> None:
    count = (device.info.shared_per_block - 1024) // 4
    a = np.random.default_rng().standard_normal(count).astype(np.float32)
    x, out = upload(device, a), device.alloc(a.nbytes)
    stream = device.stream()
    args = [x.ptr, out.ptr, (count, "u32")]
    device.launch(stream, kernels[2], (1, 1, 1), (256, 1, 1), args, shared=4 * count)
    np.testing.assert_array_equal(device.download(out, a.shape, a.dtype, stream=stream), a[::-1])
    with pytest.raises(DeviceError, match="request of 1,048,576 bytes of dynamic shared memory"):
        device.launch(stream, kernels[2], (1, 1, 1), (256, 1, 1), args, shared=1 << 20)


@gpu
@pytest.mark.parametrize("cluster", [(2, 1, 1), (8, 1, 1), (16, 1, 1)])
def test_clusters(device: CudaDevice, kernels: list[Any], cluster: tuple[int, int, int]) -> None:
    if device.info.cc < (9, 0):
        pytest.skip("clusters need compute capability 9.0")
    count = 5000
    a = np.random.default_rng().standard_normal(count).astype(np.float32)
    x, out = upload(device, a), device.alloc(a.nbytes)
    stream = device.stream()
    args = [x.ptr, x.ptr, out.ptr, (count, "u32")]
    device.launch(stream, kernels[0], (16, 1, 1), (128, 1, 1), args, cluster=cluster)
    np.testing.assert_array_equal(device.download(out, a.shape, a.dtype, stream=stream), a + a)
    with pytest.raises(DeviceError, match=r"cluster .* does not divide the grid"):
        device.launch(stream, kernels[0], (17, 1, 1), (128, 1, 1), args, cluster=cluster)


@gpu
def test_binaries_that_do_not_load(device: CudaDevice) -> None:
    code, names = binary(device.info.arch)
    with pytest.raises(DeviceError, match="loading kernel 'missing'"):
        device.load(code, "missing")
    with pytest.raises(DeviceError, match="loading kernel"):
        device.load(b"\x7fELF" + bytes(500), names[0])
    assert device.load(code, names[0]) is device.load(code, names[0])
    other = code + b""
    device.unload(other)
    assert device.load(code, names[0]).registers > 0


@gpu
def test_graphs(device: CudaDevice, kernels: list[Any]) -> None:
    count = 1003
    a = np.random.default_rng().standard_normal(count).astype(np.float32)
    x, y = upload(device, a), upload(device, np.zeros_like(a))
    stream, side = device.stream(), device.stream()
    args = [x.ptr, y.ptr, y.ptr, (count, "u32")]

    def work(on: Any) -> None:
        event = device.event()
        device.record(on, event)
        device.wait(side, event)
        device.launch(side, kernels[0], (2, 1, 1), (128, 1, 1), args)
        device.record(side, event)
        device.wait(on, event)
        device.launch(on, kernels[0], (2, 1, 1), (128, 1, 1), args)

    graph = device.capture(stream, work)
    np.testing.assert_array_equal(device.download(y, a.shape, a.dtype, stream=stream), a * 0)
    graph.launch(stream)
    found = device.download(y, a.shape, a.dtype, stream=stream)
    np.testing.assert_allclose(found, a * 2, rtol=RTOL)
    times = device.time(graph, stream, repeats=9, warm_up=2, inner=3)
    assert len(times) == 9
    assert all(0 < t < 0.1 for t in times)

    def once(on: Any) -> None:
        device.launch(on, kernels[0], (2, 1, 1), (128, 1, 1), args)

    eager = device.time(once, stream)
    assert all(0 < t < 0.1 for t in eager)


@gpu
def test_a_failed_capture_leaves_the_stream_usable(device: CudaDevice) -> None:
    stream, buffer = device.stream(), device.alloc(16)

    def fails(on: Any) -> None:
        device.set_bytes(buffer.ptr, 1, 16, on)
        raise KeyError("no")

    with pytest.raises(KeyError):
        device.capture(stream, fails)
    device.fill(buffer, 5, stream=stream)
    assert (device.download(buffer, (16,), np.uint8, stream=stream) == 5).all()


def close(found: dict[str, Any], a: Any, b: Any) -> None:
    check({k: np.asarray(v, np.float32) for k, v in found.items()}, a, b)


@gpu
def test_engine(engine: Engine) -> None:
    for _ in range(5):
        a, b = numbers(), numbers()
        close(engine.run({"a": a, "b": b}), a, b)
    with pytest.raises(InputError, match=r"convert with x.astype"):
        engine(a.astype(np.float64), b)
    u, v = engine(np.repeat(a, 2)[::2], b)
    close({"u": u, "v": v}, a, b)


@gpu
def test_runs_in_flight(engine: Engine) -> None:
    context = engine.create_context()
    pending = []
    for _ in range(20):
        a, b = numbers(), numbers()
        context.set_input("a", a)
        context.set_input("b", b)
        pending.append((context.enqueue(), a.copy(), b.copy()))
        a[:] = b[:] = 0
    for run, a, b in pending:
        close(run.result(), a, b)
    close({"u": context.output("u"), "v": context.output("v")}, a, b)
    context.synchronize()


@gpu
def test_threads(engine: Engine) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            own = engine.create_context()
            for _ in range(30):
                a, b = numbers(), numbers()
                close(engine.run({"a": a, "b": b}), a, b)
                close(own.run({"a": a, "b": b}), a, b)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@gpu
def test_device_outputs_are_inputs_again(engine: Engine) -> None:
    a, b = numbers(), numbers()
    first = engine.run({"a": a, "b": b}, device=True)
    assert isinstance(first["u"], DeviceTensor)
    second = engine.run({"a": first["v"], "b": first["u"]})
    u = first["u"].numpy()
    close({"u": u, "v": first["v"].numpy()}, a, b)
    close(second, a, u)

    class Cai:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    close(engine.run({"a": Cai(first["v"]), "b": Cai(first["u"])}), a, u)


@gpu
def test_torch(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    a, b = numbers(), numbers()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.from_numpy(a).cuda(non_blocking=True)
        outputs = engine.run({"a": x, "b": torch.from_numpy(b)}, device=True)
        taken = {name: torch.from_dlpack(t) for name, t in outputs.items()}
        kept = {name: (t * 1).cpu().numpy() for name, t in taken.items()}
    close(kept, a, b)
    with pytest.raises(InputError, match=r"has strides .*x.contiguous\(\)"):
        engine.run({"a": torch.zeros(2 * N, device="cuda")[::2], "b": b})
    context = engine.create_context()
    context.set_input("a", a)
    context.set_input("b", b)
    close(context.enqueue(stream).result(), a, b)
    close(context.enqueue(stream.cuda_stream).result(), a, b)


@gpu
def test_foreign_streams(device: CudaDevice, engine: Engine) -> None:
    context = engine.create_context()
    a, b = numbers(), numbers()
    context.set_input("a", a)
    context.set_input("b", b)
    stream = device.stream()
    close(context.enqueue(stream).result(), a, b)
    close(context.enqueue(int(stream.handle)).result(), a, b)
    with pytest.raises(DeviceError, match="str is no CUDA stream: expected an address"):
        context.enqueue("stream")


@gpu
def test_times(engine: Engine) -> None:
    latencies = measure(engine, duration=0.2, warm_up=0.05)
    assert latencies.device_seconds is not None
    assert (latencies.device_seconds > 0).all()
    assert np.median(latencies.device_seconds) < np.median(latencies.host_seconds)
    a, b = numbers(), numbers()
    seconds = engine.create_context().layer_seconds({"a": a, "b": b})
    assert len(seconds) == 1
    assert 0 < seconds[0] < 0.1
