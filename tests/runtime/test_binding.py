"""The Python binding: right answers, and every wrong input told apart."""

from __future__ import annotations

import multiprocessing
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sparsec.codegen import zig
from sparsec.codegen.bundle import Loadable, build_loadable, write_bundle
from sparsec.errors import BundleError, InputError, SparsecError
from sparsec.runtime import Session, load
from sparsec.runtime.library import ABI_VERSION
from tests.codegen.programs import ProgramBuilder, concat_program, transpose_program


@pytest.fixture(scope="module")
def toy() -> Loadable:
    return build_loadable(transpose_program())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(concat_program()[0], tmp_path_factory.mktemp("bundles") / "joined")


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "joined"))


@pytest.fixture
def session(toy: Loadable) -> Iterator[Session]:
    with Session(toy.library, toy.weights, threads=2) as opened:
        yield opened


def _x(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 17, 5)).astype(np.float32)


def test_run(session: Session) -> None:
    x = _x()
    for inputs in ({"x": x}, [x], (x,)):
        result = session.run(inputs)
        assert list(result) == ["y"]
        assert result["y"].dtype == np.float32
        np.testing.assert_array_equal(result["y"], x.transpose(2, 1, 0))


def test_facts(session: Session) -> None:
    assert [str(i) for i in session.inputs] == ["x: float32[3, 17, 5]"]
    assert [str(o) for o in session.outputs] == ["y: float32[5, 17, 3]"]
    assert session.name == "toy"
    assert session.arena_bytes == 1024  # 255 floats, rounded up to a cache line
    assert session.weights_bytes == 0
    assert 1024 < session.memory_bytes < 8192


def test_inputs_of_any_memory_order(session: Session) -> None:
    x = _x(2)
    wide = np.zeros((3, 17, 10), np.float32)
    wide[..., ::2] = x
    for array in (np.asfortranarray(x), wide[..., ::2], x[::-1][::-1]):
        np.testing.assert_array_equal(session.run([array])["y"], x.transpose(2, 1, 0))
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    np.testing.assert_array_equal(session.run([unaligned])["y"], x.transpose(2, 1, 0))


def test_threads_do_not_change_results(toy: Loadable) -> None:
    x = _x(3)
    with Session(toy.library, toy.weights) as session:
        for threads in (1, 2, 5, 0):
            session.threads = threads
            assert session.threads >= 1
            np.testing.assert_array_equal(session.run([x])["y"], x.transpose(2, 1, 0))
        for bad in (-1, 257, 1.5, "2"):
            with pytest.raises(InputError, match="from 1 to 256"):
                session.threads = bad  # type: ignore[assignment]


def test_scalars_booleans_and_empty() -> None:
    build = ProgramBuilder("odd")
    scalar, flags = build.input("s", (), "float64"), build.input("b", (5,), "bool")
    out_s, out_b = build.output("s_out", (), "float64"), build.output("b_out", (5,), "bool")
    build.input("nothing", (0, 3))
    build.output("void", (0, 3))
    build.copy_into(scalar, out_s, 0)
    build.copy_into(flags, out_b, 0)
    made = build_loadable(build.program)
    with Session(made.library, made.weights) as session:
        bits = np.array([1, 0, 0, 1, 1], bool)
        result = session.run({"s": np.float64(2.5), "b": bits, "nothing": np.empty((0, 3), np.float32)})
    assert result["s_out"].shape == ()
    assert result["s_out"] == 2.5
    np.testing.assert_array_equal(result["b_out"], bits)
    assert result["void"].shape == (0, 3)


def test_parallel_users(toy: Loadable) -> None:
    """One session used by many threads, and a session a thread on the same weights."""
    failures: list[str] = []
    with Session(toy.library, toy.weights, threads=2) as shared:

        def use(seed: int) -> None:
            with Session(toy.library, toy.weights) as own:
                x = _x(seed)
                for session in [shared, own] * 20:
                    if not np.array_equal(session.run([x])["y"], x.transpose(2, 1, 0)):
                        failures.append(f"seed {seed}")

        users = [threading.Thread(target=use, args=(seed,)) for seed in range(6)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert not failures


def _run_in_child(session: Session, x: np.ndarray, answers: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    answers.put(bool(np.array_equal(session.run([x])["y"], x.transpose(2, 1, 0))))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs_after_fork(session: Session) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_run_in_child, args=(session, _x(), answers))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert answers.get() is True


def test_profile(session: Session) -> None:
    times = session.profile([_x()], repeat=3)
    assert [(t.node, t.op) for t in times] == [("first", "Transpose"), ("second", "Transpose")]
    assert all(t.ns > 0 and t.kernel.startswith("spc_copy_") for t in times)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "0 arrays given, 1 wanted"),
        ([_x(), _x()], "2 arrays given, 1 wanted"),
        ({}, "missing: 'x'"),
        ({"z": _x()}, "no input named 'z'; missing: 'x'"),
        ({"x": _x(), "z": _x()}, "no input named 'z'"),
        ([_x().astype(np.float64)], "dtype float64, not float32"),
        ([_x().astype(">f4")], "dtype >f4, not float32"),
        ([_x()[:2]], r"shape \(2, 17, 5\), not \(3, 17, 5\)"),
        ([_x().reshape(1, 3, 17, 5)], r"shape \(1, 3, 17, 5\)"),
        ([[1.0, 2.0]], "is a list, not a numpy array"),
        (_x(), "a dict or a list of arrays, not ndarray"),
        (None, "not NoneType"),
    ],
)
def test_wrong_inputs(session: Session, inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        session.run(inputs)  # type: ignore[arg-type]
    assert "x: float32[3, 17, 5]" in str(caught.value)


def test_closed(toy: Loadable) -> None:
    session = Session(toy.library, toy.weights, threads=2)
    session.close()
    session.close()
    with pytest.raises(BundleError, match="closed"):
        session.run([_x()])
    with pytest.raises(BundleError, match="closed"):
        session.threads = 1


# --- bundles and weights ---


def test_load(bundle: Path) -> None:
    constant = concat_program()[1]
    x = np.arange(12).reshape(4, 3)
    with load(bundle, threads=2) as session:
        assert session.weights_bytes == 192
        np.testing.assert_array_equal(session.run([x])["y"], np.concatenate([x, constant, constant]))


@pytest.mark.parametrize("size", [0, 5, 63, 64, 100, 255])
def test_truncated_weights(copied: Path, size: int) -> None:
    blob = (copied / "weights.bin").read_bytes()
    (copied / "weights.bin").write_bytes(blob[:size])
    with pytest.raises(BundleError, match=r"weights\.bin: the weights are truncated"):
        load(copied)


@pytest.mark.parametrize(
    ("offset", "message"),
    [(0, "not a sparsec weights file"), (17, "header of the weights is damaged"), (64, "checksum"), (255, "checksum")],
)
def test_damaged_weights(copied: Path, offset: int, message: str) -> None:
    blob = bytearray((copied / "weights.bin").read_bytes())
    blob[offset] ^= 0x10
    (copied / "weights.bin").write_bytes(blob)
    with pytest.raises(BundleError, match=message):
        load(copied)


def test_foreign_weights(copied: Path, toy: Loadable, tmp_path: Path) -> None:
    (copied / "weights.bin").write_bytes(toy.weights.tobytes())
    with pytest.raises(BundleError, match=r"weights belong to another model \(model 'joined'"):
        load(copied)
    (copied / "weights.bin").write_bytes(b"PK\x03\x04" + bytes(500))
    with pytest.raises(BundleError, match="not a sparsec weights file"):
        load(copied)


def test_longer_and_missing_weights(copied: Path, toy: Loadable) -> None:
    with open(copied / "weights.bin", "ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="another size"):
        load(copied)
    (copied / "weights.bin").unlink()
    with pytest.raises(BundleError, match="cannot be opened"):
        load(copied)
    with pytest.raises(BundleError, match="library without weights"):
        Session(toy.library)


def test_weights_in_memory_are_checked(toy: Loadable) -> None:
    damaged = toy.weights.copy()
    damaged[20] ^= 1
    for weights, message in [
        (damaged, "header"),
        (toy.weights[:40].copy(), "truncated"),
        (toy.weights.view(np.int8), "contiguous uint8"),
        (toy.weights[::2], "contiguous uint8"),
    ]:
        with pytest.raises(BundleError, match=message):
            Session(toy.library, weights)


def test_a_retrained_model_of_the_same_layout_is_accepted(copied: Path, tmp_path: Path) -> None:
    """The model id covers the layout, not the values: new values can be shipped as a new weights.bin."""
    program, constant = concat_program(seed=77)
    other = write_bundle(program, tmp_path / "other")
    x = np.zeros((4, 3), np.int64)
    with Session(copied, other / "weights.bin") as session:
        np.testing.assert_array_equal(session.run([x])["y"][4:10], constant)


def test_broken_bundles(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        load(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(BundleError, match="cannot be loaded"):
        Session(text, text)
    manifest = copied / "manifest.json"
    good = manifest.read_text()
    for bad in ("", "{", "[]", "{}", '{"library": 3}'):
        manifest.write_text(bad)
        with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
            load(copied)
    manifest.write_text(good)
    (copied / "lib" / "libjoined.so").unlink()
    with pytest.raises(BundleError, match="lacks its library"):
        load(copied)


def test_library_of_something_else(tmp_path: Path) -> None:
    source, library = tmp_path / "a.c", tmp_path / "a.so"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run([*zig.command("cc"), "-shared", "-o", str(library), str(source)], check=True)
    with pytest.raises(BundleError, match="not a sparsec model"):
        Session(library, library)


def test_library_of_another_version(copied: Path) -> None:
    """The library's descriptor starts with the runtime version: change it in the file."""
    with load(copied) as session:
        model_id = struct.pack("<Q", int(session.model_id, 16))
    library = copied / "lib" / "libjoined.so"
    data = bytearray(library.read_bytes())
    (at,) = [i for i in range(len(data)) if data.startswith(model_id, i)]
    assert data[at - 24 : at - 20] == struct.pack("<I", ABI_VERSION)
    data[at - 24] = 9
    library.unlink()  # the file is mapped: writing into it would change the loaded code
    library.write_bytes(data)
    with pytest.raises(BundleError, match=f"runtime version 9, this is version {ABI_VERSION}"):
        load(copied)


def test_recompiled_bundle_is_loaded_anew(tmp_path: Path) -> None:
    """dlopen would return the library it knows under this path."""
    out = tmp_path / "model"
    write_bundle(transpose_program(shape=(2, 3, 4)), out)
    with load(out) as old:
        write_bundle(transpose_program(shape=(3, 5, 2)), out, force=True)
        with load(out) as new:
            assert new.inputs[0].shape == (3, 5, 2)
            x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
            np.testing.assert_array_equal(new.run([x])["y"], x.transpose(2, 1, 0))
        x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
        np.testing.assert_array_equal(old.run([x])["y"], x.transpose(2, 1, 0))


def test_mixed_up_bundle(copied: Path, tmp_path: Path) -> None:
    other = write_bundle(transpose_program(), tmp_path / "toy")
    shutil.copyfile(other / "lib" / "libtoy.so", copied / "lib" / "libjoined.so")
    with pytest.raises(BundleError, match=r"its manifest\.json says"):
        load(copied)


def test_errors_are_sparsec_errors() -> None:
    assert issubclass(BundleError, SparsecError)
    assert issubclass(InputError, SparsecError)


def test_binding_imports_little() -> None:
    code = (
        "import sys, sparsec.runtime; loaded = [m for m in sys.modules if m.startswith('sparsec.')];"
        "print(sorted(loaded), 'onnx' in sys.modules, 'tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == (
        [
            "['sparsec.errors',",
            "'sparsec.lazy_imports',",
            "'sparsec.runtime',",
            "'sparsec.runtime.binding',",
            "'sparsec.runtime.dlpack',",
            "'sparsec.runtime.library']",
            "False",
            "False",
        ]
    )
