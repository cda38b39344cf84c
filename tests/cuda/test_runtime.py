"""The C runtime on a GPU that is simulated: results, graphs, sharing, times, and one clear error for everything that is missing."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from sparsec.codegen.bundle import Compiled, Loadable, build_loadable, compile_program
from sparsec.errors import BundleError, DeviceError, InputError
from sparsec.runtime import DeviceArray, Session, dlpack
from tests.codegen.programs import transpose_program
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.joins import join_program, join_reference

pytestmark = needs_compiler
SHAPES = ((4, 3, 37), (3, 37))


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_program(join_program()[0])


@pytest.fixture(scope="module")
def loadable(compiled: Compiled) -> Loadable:
    return build_loadable(compiled)


@pytest.fixture
def session(gpu: FakeGpu, compiled: Compiled, loadable: Loadable) -> Iterator[Session]:
    gpu.add(compiled)
    with Session(loadable.library, loadable.weights) as opened:
        yield opened


def arrays(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


def wanted(given: list[np.ndarray]) -> dict[str, np.ndarray]:
    return join_reference(*given, join_program()[1])


def check(result: dict[str, np.ndarray], given: list[np.ndarray]) -> None:
    assert list(result) == ["y", "z"]
    for name, array in wanted(given).items():
        np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5)


def test_runs_and_replays_one_graph(session: Session, gpu: FakeGpu) -> None:
    for seed in range(5):
        given = arrays(seed)
        check(session.run(given), given)
    assert session.on_gpu
    assert gpu.calls("cuStreamBeginCapture_v2") == gpu.calls("cuGraphInstantiateWithFlags") == 1
    assert gpu.calls("cuGraphLaunch") == 4
    assert gpu.calls("cuLaunchKernel") == 2 * 4  # in the first run, and while the graph was captured
    assert gpu.calls("cuModuleLoadData") == gpu.calls("cubin") == 3  # two of the steps share a kernel
    assert gpu.calls("cuMemcpyHtoD_v2") == 1


def test_the_first_run_is_not_captured(session: Session, gpu: FakeGpu, loadable: Loadable) -> None:
    """The driver may load a kernel when it first runs, which cannot be captured (the simulated one refuses it)."""
    check(session.run(arrays(1)), arrays(1))
    assert (gpu.calls("cuStreamBeginCapture_v2"), gpu.calls("cuLaunchKernel")) == (0, 4)
    check(session.run(arrays(2)), arrays(2))
    assert (gpu.calls("cuStreamBeginCapture_v2"), gpu.calls("cuLaunchKernel")) == (1, 8)
    with Session(loadable.library, loadable.weights) as other:
        check(other.run(arrays(3)), arrays(3))
    assert gpu.calls("cuStreamBeginCapture_v2") == 1


def test_facts(session: Session, compiled: Compiled) -> None:
    assert session.target == "cuda:sm_90"
    assert session.arena_bytes == 2 * 448
    assert session.memory_bytes < 1024  # the arena is the GPU's
    session.threads = 3  # means nothing, and harms nothing
    check(session.run(arrays(1)), arrays(1))


def test_sessions_share_weights_and_kernels(session: Session, gpu: FakeGpu, loadable: Loadable) -> None:
    with Session(loadable.library, loadable.weights) as other:
        for seed in range(2):
            given = arrays(seed)
            check(session.run(given), given)
            check(other.run(arrays(seed + 9)), arrays(seed + 9))
    assert gpu.calls("cuMemcpyHtoD_v2") == 1
    assert gpu.calls("cuModuleLoadData") == 3
    check(session.run(arrays(5)), arrays(5))  # the first one goes on


def test_many_threads(session: Session, loadable: Loadable) -> None:
    failures: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            with Session(loadable.library, loadable.weights) as own:
                for one in (session, own) * 3:
                    check(one.run(arrays(seed)), arrays(seed))
        except BaseException as error:
            failures.append(error)

    users = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert failures == []


def test_times_of_steps(session: Session, gpu: FakeGpu) -> None:
    times = session.profile(arrays(1), repeat=3)
    assert [(t.node, t.op) for t in times] == [
        ("sum", "ReduceSum"),
        ("act", "Relu"),
        ("again", "Relu"),
        ("add */ it", "Add"),
    ]
    assert all(t.ns > 0 for t in times)
    assert gpu.calls("cuGraphLaunch") == 0
    for _ in range(2):
        check(session.run(arrays(2)), arrays(2))
    assert gpu.calls("cuGraphLaunch") == 1


# --- tensors of the GPU ---


def on_device(gpu: FakeGpu, session: Session, given: list[np.ndarray]) -> list[DeviceArray]:
    """Arrays in the GPU's memory."""
    made = [session._take(info) for info in session.inputs]
    for there, array in zip(made, given, strict=True):
        gpu.write(there.address, array)
    return made


def test_tensors_of_the_gpu_are_used_in_place(session: Session, gpu: FakeGpu) -> None:
    given = arrays(3)
    there = on_device(gpu, session, given)
    result = session.run(there)
    assert all(isinstance(array, DeviceArray) for array in result.values())
    for name, array in wanted(given).items():
        out = result[name]
        assert (out.dtype, out.shape, out.nbytes) == ("float32", (3, 37), 444)
        np.testing.assert_allclose(gpu.read(out.address, out.dtype, out.shape), array, rtol=1e-5, atol=1e-5)
    assert gpu.calls("cuMemcpyHtoDAsync_v2") == gpu.calls("cuMemcpyDtoHAsync_v2") == 0
    # one output is the next run's input, by name
    again = session.run({"x": there[0], "r": result["y"]})
    second = wanted([given[0], wanted(given)["y"]])["y"]
    np.testing.assert_allclose(gpu.read(again["y"].address, "float32", (3, 37)), second, rtol=1e-5, atol=1e-5)
    assert gpu.calls("cuStreamBeginCapture_v2") == 0  # pointers seen once are not worth a graph


def test_graphs_are_kept_for_a_few_sets_of_pointers(session: Session, gpu: FakeGpu) -> None:
    sets = [on_device(gpu, session, arrays(seed)) for seed in range(5)]
    outs = [session._take(info) for info in session.outputs]
    pointers = [o.address for o in outs]

    def run(index: int) -> None:
        session._call("spc_session_run_device", [a.address for a in sets[index]], pointers)
        expected = wanted(arrays(index))["y"]
        np.testing.assert_allclose(gpu.read(pointers[0], "float32", (3, 37)), expected, rtol=1e-5, atol=1e-5)

    for index in (0, 1, 2, 3):
        run(index)
    assert gpu.calls("cuStreamBeginCapture_v2") == 0
    for index in (0, 1, 2, 3, 0, 1, 2, 3):
        run(index)
    assert (gpu.calls("cuStreamBeginCapture_v2"), gpu.calls("cuGraphLaunch")) == (4, 8)
    run(4)  # in the place of the one used longest ago
    run(1)
    assert (gpu.calls("cuStreamBeginCapture_v2"), gpu.calls("cuGraphLaunch")) == (4, 9)
    run(0)
    run(0)
    assert (gpu.calls("cuStreamBeginCapture_v2"), gpu.calls("cuGraphLaunch")) == (5, 10)


def test_outputs_outlive_their_session(gpu: FakeGpu, compiled: Compiled, loadable: Loadable) -> None:
    gpu.add(compiled)
    session = Session(loadable.library, loadable.weights)
    result = session.run(on_device(gpu, session, arrays(4)))
    session.close()
    with pytest.raises(BundleError, match="the session is closed"):
        session.run(arrays(4))
    np.testing.assert_allclose(
        gpu.read(result["z"].address, "float32", (3, 37)), wanted(arrays(4))["z"], rtol=1e-5, atol=1e-5
    )
    assert gpu.live > 0
    del result  # and everything is given back (the fixture looks)


def test_memory_lives_as_long_as_a_capsule(session: Session, gpu: FakeGpu) -> None:
    before = gpu.live
    array = session._take(session.inputs[1])
    capsule = array.__dlpack__(stream=1)
    address = array.address
    del array
    again = session._take(session.inputs[1])
    assert again.address != address  # it is in use
    assert gpu.live == before + 2
    del capsule
    assert session._take(session.inputs[1]).address == address


def test_outputs_take_the_place_of_those_that_are_gone(session: Session, gpu: FakeGpu) -> None:
    given = on_device(gpu, session, arrays(2))
    addresses = set()
    for _ in range(5):
        result = session.run(given)
        addresses.add(result["y"].address)
        del result
    assert len(addresses) == 1
    assert gpu.calls("cuStreamBeginCapture_v2") == 1
    assert gpu.calls("cuMemAlloc_v2") == 2 + 2 + 2  # weights, arena; inputs; outputs


class OtherLibrary:
    """Has a stream of its own and reads the GPU's memory in it, when it comes to that."""

    def __init__(self, gpu: FakeGpu, session: Session, bytes_: int) -> None:
        self._library = ctypes.CDLL(str(gpu.path))
        self._context, self._stream, self._pinned = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._bytes = bytes_
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), 7)
        self._call("cuCtxPushCurrent_v2", self._context)
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)
        self._call("cuMemAllocHost_v2", ctypes.byref(self._pinned), ctypes.c_size_t(bytes_))

    def _call(self, name: str, *arguments: object) -> None:
        assert getattr(self._library, name)(*arguments) == 0, name

    def read(self, address: int) -> None:
        """Begin to read."""
        self._call(
            "cuMemcpyDtoHAsync_v2", self._pinned, ctypes.c_uint64(address), ctypes.c_size_t(self._bytes), self._stream
        )

    def found(self) -> np.ndarray:
        """What was read."""
        self._call("cuStreamSynchronize", self._stream)
        return np.frombuffer(ctypes.string_at(self._pinned, self._bytes), np.float32).copy()

    def close(self) -> None:
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuMemFreeHost", self._pinned)
        self._call("cuCtxPopCurrent_v2", ctypes.byref(self._context))
        self._call("cuDevicePrimaryCtxRelease_v2", 7)


def test_outputs_are_not_replaced_while_another_library_reads_them(session: Session, gpu: FakeGpu) -> None:
    """Its kernels may be pending when it gives a tensor back, and the next run waits for the streams of its own inputs alone."""
    other = OtherLibrary(gpu, session, 444)
    first, second = on_device(gpu, session, arrays(1)), on_device(gpu, session, arrays(2))
    session.run(first)
    result = session.run(first)["y"]
    address, capsule = result.address, result.__dlpack__(stream=1)
    del result
    other.read(address)
    del capsule
    assert gpu.calls("cuCtxSynchronize") == 0
    again = session.run(second)["y"]
    assert again.address == address
    np.testing.assert_allclose(other.found().reshape(3, 37), wanted(arrays(1))["y"], rtol=1e-5, atol=1e-5)
    assert gpu.calls("cuCtxSynchronize") == 1
    del again
    session.run(first)  # nobody else had it
    assert gpu.calls("cuCtxSynchronize") == 1
    other.close()


def test_what_another_library_reads_is_given_back_later(gpu: FakeGpu, compiled: Compiled, loadable: Loadable) -> None:
    gpu.add(compiled)
    session = Session(loadable.library, loadable.weights)
    results = [session.run(on_device(gpu, session, arrays(1)))["y"] for _ in range(6)]  # more than are kept
    for result in results:
        result.__dlpack__(stream=1)
    del result, results
    assert gpu.calls("cuCtxSynchronize") >= 1
    session.close()


class Strange:
    """A tensor of another library: says what a DeviceArray says, but for what is changed in the capsule."""

    def __init__(self, array: DeviceArray, device: tuple[int, int] = (2, 0), **fields: object) -> None:
        self.array, self.device, self.fields = array, device, fields

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> object:
        assert stream
        if "refuses" in self.fields:
            raise BufferError(self.fields["refuses"])
        capsule = self.array.__dlpack__(stream=stream)
        tensor = dlpack._Tensor.from_address(dlpack._get_pointer(capsule, b"dltensor"))
        for name, value in self.fields.items():
            if name in ("bits", "code", "lanes"):
                setattr(tensor.dtype, name, value)
            elif name == "strides":
                self.strides = (ctypes.c_int64 * len(value))(*value)  # type: ignore[arg-type, call-overload]
                tensor.strides = self.strides
            else:
                setattr(tensor, name, value)
        return capsule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 16}, "input 'r' has dtype float16, not float32"),
        ({"code": 4, "bits": 16}, "input 'r' has dtype bfloat16, not float32"),
        ({"lanes": 4}, "dtype float32x4"),
        ({"ndim": 1}, r"input 'r' has shape \(3,\), not \(3, 37\)"),
        ({"strides": (1, 3)}, "input 'r' is not contiguous"),
        ({"byte_offset": 4}, "does not start at a multiple of 16 bytes"),
        ({"device": (2, 1)}, "input 'r' lies on GPU 1"),
        ({"refuses": "it requires a gradient"}, "input 'r' is not given away by DLPack: it requires a gradient"),
    ],
)
def test_tensors_that_do_not_fit(session: Session, gpu: FakeGpu, change: dict[str, object], message: str) -> None:
    x, r = on_device(gpu, session, arrays(1))
    with pytest.raises(InputError, match=message):
        session.run([x, Strange(r, **change)])  # type: ignore[arg-type]
    check_there = session.run([x, Strange(r, strides=(37, 1))])
    assert set(check_there) == {"y", "z"}


def test_tensors_of_both_sides_are_refused(session: Session, gpu: FakeGpu) -> None:
    x, _ = on_device(gpu, session, arrays(1))
    with pytest.raises(InputError, match="input 'r' does not lie on the GPU, others do"):
        session.run([x, arrays(1)[1]])


def test_a_program_for_the_processor_refuses_tensors_of_the_gpu(session: Session, gpu: FakeGpu) -> None:
    made = build_loadable(transpose_program(shape=(4, 3, 37)))
    with Session(made.library, made.weights) as processor:
        assert not processor.on_gpu
        with pytest.raises(InputError, match="runs on the processor"):
            processor.run(on_device(gpu, session, arrays(1))[:1])


# --- what can be missing ---


def open_with(gpu: FakeGpu, compiled: Compiled, loadable: Loadable) -> Session:
    gpu.add(compiled)
    return Session(loadable.library, loadable.weights)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SPC_CUDA_DRIVER": "/nowhere/libcuda.so.1"}, "there is no CUDA driver .*nowhere.*install NVIDIA's driver, or compile for a cpu"),
        ({"SPC_CUDA_DRIVER": "libm.so.6"}, "the CUDA driver is too old .libm.so.6 has no cuInit"),
        ({"SPC_FAKE_VERSION": "11040"}, r"the CUDA driver is too old \(CUDA 11.4\): install one of CUDA 12.0 or newer"),
        ({"SPC_FAKE_NO_DEVICE": "1"}, "the CUDA driver finds no GPU"),
        ({"SPC_FAKE_SM": "80"}, r"compiled for sm_90, this GPU is sm_80 \(Simulated 80\): compile it for cuda:sm_80"),
        ({"SPC_FAKE_SM": "100", "SPC_FAKE_NO_PTX": "1"}, "this GPU is sm_100, .*install a newer driver, or compile it for cuda:sm_100"),
        ({"SPC_FAKE_FAIL_ALLOC": "1"}, "the GPU is out of memory: no room for the model's weights; 3 of its 81920 MiB are free"),
        ({"SPC_FAKE_FAIL_ALLOC": "2"}, "out of memory: no room for the intermediate results"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(
    gpu: FakeGpu,
    compiled: Compiled,
    loadable: Loadable,
    variables: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=rf"model 'joins': .*{message}"):
        open_with(gpu, compiled, loadable)


def test_a_newer_gpu_gets_the_ptx(
    gpu: FakeGpu, compiled: Compiled, loadable: Loadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPC_FAKE_SM", "120")
    with open_with(gpu, compiled, loadable) as session:
        check(session.run(arrays(1)), arrays(1))
    assert (gpu.calls("cubin"), gpu.calls("ptx")) == (0, 3)


def test_a_gpu_that_does_not_take_the_machine_code_gets_the_ptx(
    gpu: FakeGpu, compiled: Compiled, loadable: Loadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Jetson (sm_87) with code for sm_80."""
    monkeypatch.setenv("SPC_FAKE_NO_CUBIN", "1")
    with open_with(gpu, compiled, loadable) as session:
        check(session.run(arrays(1)), arrays(1))
    assert (gpu.calls("cubin"), gpu.calls("ptx")) == (0, 3)
    monkeypatch.setenv("SPC_FAKE_NO_PTX", "1")
    with pytest.raises(DeviceError, match="the driver cannot translate it"):
        open_with(gpu, compiled, loadable)


def test_no_memory_for_staging_and_then_some(
    gpu: FakeGpu, compiled: Compiled, loadable: Loadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPC_FAKE_FAIL_ALLOC", "3")
    with open_with(gpu, compiled, loadable) as session:
        with pytest.raises(DeviceError, match="no room for inputs and outputs"):
            session.run(arrays(1))
        check(session.run(arrays(1)), arrays(1))


def test_a_kernel_that_fails(
    gpu: FakeGpu, compiled: Compiled, loadable: Loadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPC_FAKE_FAIL_LAUNCH", "6")
    with open_with(gpu, compiled, loadable) as session:
        check(session.run(arrays(1)), arrays(1))
        with pytest.raises(DeviceError, match=r"a kernel failed: CUDA_ERROR_LAUNCH_FAILED \(719\)"):
            session.run(arrays(1))


def test_a_kernel_that_is_missing(gpu: FakeGpu, loadable: Loadable) -> None:
    with pytest.raises(DeviceError, match=r"spc_cuda_join_\w+: CUDA_ERROR_NOT_FOUND"):
        Session(loadable.library, loadable.weights)
