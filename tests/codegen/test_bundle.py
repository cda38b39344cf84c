"""Bundles: complete, deterministic, run on both architectures, never half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sparsec.codegen.blob import checksum
from sparsec.codegen.bundle import check_output, write_bundle
from sparsec.codegen.link import Linker
from sparsec.errors import OutputError, ToolchainError
from sparsec.target import NAMED, Target, host_target
from tests.codegen.programs import concat_program, transpose_program
from tests.elf import read_elf

LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(concat_program()[0], tmp_path_factory.mktemp("host") / "joined", recipe_yaml="version: 1\n")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(concat_program(NAMED["arm"])[0], tmp_path_factory.mktemp("arm") / "joined")


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _demo(bundle: Path, *arguments: str | Path, emulator: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*emulator, str(bundle / "bin" / "joined"), *map(str, arguments)], capture_output=True, text=True
    )


def _qemu() -> tuple[str, ...]:
    if host_target().arch == "aarch64":
        return ()
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 not found: install qemu-user to run ARM programs here")
    return ("qemu-aarch64",)


def test_contents(host: Path) -> None:
    manifest = json.loads((host / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(set(_contents(host)) - {"manifest.json"})
    assert {
        "bin/joined", "lib/libjoined.so", "lib/libjoined.a", "lib/libjoined_kernels.a", "include/joined.h",
        "include/spc_runtime.h", "src/model.c", "weights.bin", "CMakeLists.txt", "effective-recipe.yaml",
    } <= set(manifest["files"])  # fmt: skip
    assert manifest["inputs"] == [{"name": "x", "dtype": "int64", "shape": [4, 3]}]
    assert manifest["bytes"]["weights"] == 192
    assert [s["op"] for s in manifest["steps"]] == ["Concat"] * 3
    assert (host / "weights.bin").stat().st_size == 64 + 192


@pytest.mark.parametrize("target", [host_target(), NAMED["arm"]], ids=["host", "arm"])
def test_same_inputs_same_bytes(target: Target, host: Path, arm: Path, tmp_path: Path) -> None:
    program = concat_program(target)[0]
    again = write_bundle(
        program, tmp_path / "elsewhere" / "joined", recipe_yaml="version: 1\n" if target.name == "cpu" else ""
    )
    first = host if target.name == "cpu" else arm
    assert _contents(first) == _contents(again)


def _check_demo(bundle: Path, folder: Path, emulator: tuple[str, ...]) -> None:
    constant = concat_program()[1]
    x = np.random.default_rng(3).integers(-5, 5, (4, 3))
    np.save(folder / "in.npy", x)
    done = _demo(bundle, "-t", "3", "-n", "5", folder / "in.npy", folder / "out.npy", emulator=emulator)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("median of 5 runs: ")
    np.testing.assert_array_equal(np.load(folder / "out.npy"), np.concatenate([x, constant, constant]))
    shutil.copyfile(bundle / "weights.bin", folder / "other.bin")
    done = _demo(bundle, "-w", folder / "other.bin", folder / "in.npy", folder / "out2.npy", emulator=emulator)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.npy").read_bytes() == (folder / "out2.npy").read_bytes()


def test_demo_program_here(host: Path, tmp_path: Path) -> None:
    _check_demo(host, tmp_path, ())


def test_demo_program_on_arm(arm: Path, tmp_path: Path) -> None:
    _check_demo(arm, tmp_path, _qemu())


def test_links_with_the_c_library_only(host: Path, arm: Path) -> None:
    for path in (host / "lib" / "libjoined.so", arm / "lib" / "libjoined.so", host / "bin" / "joined"):
        assert set(read_elf(path).needed) <= LIBRARIES, path
    assert read_elf(arm / "bin" / "joined").needed == []  # static
    library = read_elf(arm / "lib" / "libjoined.so")
    assert library.machine == 183
    shown = {s for s in library.defined if not s.startswith("_")}
    assert shown >= {"spc_bundle_model", "joined_run"}
    assert not {s for s in shown if s.startswith("spc_copy")}


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda p: None, "cannot open"),
        (lambda p: p.write_bytes(b"hello"), "not a .npy file"),
        (lambda p: np.save(p, np.zeros((4, 3), np.float32)), "dtype '<f4' where 'x' takes '<i8'"),
        (lambda p: np.save(p, np.zeros((3, 4), np.int64)), "shape (3, 4) where 'x' takes (4, 3)"),
        (lambda p: np.save(p, np.zeros((4, 3, 1), np.int64)), "shape (4, 3, 1)"),
        (lambda p: np.save(p, np.zeros((4,), np.int64)), "shape (4,)"),
        (lambda p: np.save(p, np.asfortranarray(np.zeros((4, 3), np.int64))), "Fortran order"),
        (lambda p: (np.save(p, np.zeros((4, 3), np.int64)), p.write_bytes(p.read_bytes()[:-1])), "truncated"),
        (lambda p: (np.save(p, np.zeros((4, 3), np.int64)), p.write_bytes(p.read_bytes()[:20])), "header is damaged"),
    ],
)  # fmt: skip
def test_demo_refuses_files(host: Path, tmp_path: Path, save, message: str) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path / "in.npy")
    done = _demo(host, tmp_path / "in.npy", tmp_path / "out.npy")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["a.npy"], ["a", "b", "c"], ["-t", "x", "a", "b"], ["-n", "0", "a", "b"], ["-q"]]
)
def test_demo_usage(host: Path, arguments: list[str]) -> None:
    done = _demo(host, *arguments)
    assert done.returncode == 2
    assert "x: int64[4, 3]" in done.stderr


def test_demo_refuses_weights(host: Path, arm: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((4, 3), np.int64))
    for weights, message in [
        (arm / "weights.bin", "belong to another model"),
        (tmp_path / "none.bin", "cannot be opened"),
        (tmp_path / "in.npy", "not a sparsec weights file"),
    ]:
        done = _demo(host, "-w", weights, tmp_path / "in.npy", tmp_path / "out.npy")
        assert done.returncode == 1
        assert message in done.stderr


def test_cmake_builds_from_source(host: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("cc") is None:
        pytest.skip("no cmake or no system compiler here")
    build = tmp_path / "build"
    for command in (["cmake", "-S", str(host), "-B", str(build)], ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    np.save(tmp_path / "in.npy", np.ones((4, 3), np.int64))
    command = [
        str(build / "joined_demo"),
        "-w",
        str(host / "weights.bin"),
        str(tmp_path / "in.npy"),
        str(tmp_path / "o.npy"),
    ]
    subprocess.run(command, check=True)
    assert np.load(tmp_path / "o.npy").shape == (16, 3)


def test_static_library_serves_a_c_program(host: Path, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no system compiler here")
    (tmp_path / "main.c").write_text(
        '#include "joined.h"\n#include <stdio.h>\nint main(int argc, char **argv) {\n'
        "  spc_session *s; int64_t x[12] = {7}, y[48]; (void)argc;\n"
        "  int32_t status = joined_init(&s, argv[1], 2);\n"
        "  if (status) { puts(spc_status_text(status)); return 1; }\n"
        "  status = joined_run(s, x, y); joined_free(s);\n"
        '  printf("%s %d %d\\n", joined_input_info(0)->name, joined_input_info(1) == NULL, (int)y[0]); return status; }\n'
    )
    program = tmp_path / "main"
    subprocess.run(
        ["cc", f"-I{host / 'include'}", str(tmp_path / "main.c"), str(host / "lib" / "libjoined.a"), "-lm", "-lpthread",
         "-o", str(program)], check=True,
    )  # fmt: skip
    done = subprocess.run([str(program), str(host / "weights.bin")], capture_output=True, text=True, check=True)
    assert done.stdout == "x 1 7\n"


# --- the output folder ---


def test_existing_folder_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    program = transpose_program()
    with pytest.raises(OutputError, match="exists; give another output folder, or --force"):
        write_bundle(program, out)
    with pytest.raises(OutputError, match="holds something else than a bundle"):
        write_bundle(program, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (out / "precious.txt").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        write_bundle(program, file, force=True)


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    out = write_bundle(transpose_program(), tmp_path / "out")
    (out / "stale").write_text("")
    write_bundle(concat_program()[0], out, force=True)
    assert not (out / "stale").exists()
    assert (out / "bin" / "joined").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    out = tmp_path / "out"
    before = _contents(write_bundle(transpose_program(), out)) if existing else {}

    def fail(*_: object) -> None:
        raise ToolchainError("the linker is out of order")

    monkeypatch.setattr(Linker, "program", fail)
    with pytest.raises(ToolchainError, match="out of order"):
        write_bundle(transpose_program(), out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if existing else [])
    assert (_contents(out) if existing else {}) == before


def test_interrupted_rename_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_bundle(transpose_program(), tmp_path / "out")
    before = _contents(out)
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if self.name == "bundle":
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(transpose_program(), out, force=True)
    assert _contents(out) == before


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_bundle(transpose_program(), tmp_path / "file" / "out")
    check_output(tmp_path / "free", force=False)


def test_reports_are_written(tmp_path: Path) -> None:
    out = write_bundle(
        transpose_program(), tmp_path / "out", report={"b": 1, "a": [2]}, extra_files={"report.html": "<p>é</p>"}
    )
    assert json.loads((out / "report.json").read_text()) == {"a": [2], "b": 1}
    assert (out / "report.html").read_bytes() == "<p>é</p>".encode()
    assert "report.html" in json.loads((out / "manifest.json").read_text())["files"]


def _checksum_by_hand(data: bytes) -> int:
    """splitmix64's finaliser over word xor position, one word at a time, in Python integers."""
    mask = (1 << 64) - 1

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    total = 0
    for index in range(-(-len(data) // 8)):
        word = int.from_bytes(data[8 * index : 8 * index + 8], "little")
        total += mix(word ^ (index + 1) * 0x9E3779B97F4A7C15 & mask)
    return mix(total & mask ^ len(data))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 8191])
def test_checksum(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert checksum(data) == _checksum_by_hand(data.tobytes())


def test_checksum_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).integers(0, 256, 3001, np.uint8)
    whole = checksum(data)
    monkeypatch.setattr("sparsec.codegen.blob._CHUNK", 16)
    assert checksum(data) == whole
