"""`bench --isa`: features of the processor are hidden from processes, and what they run is counted."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import isa, roof
from bench.__main__ import main
from bench.cpuid_table import CPUID, cpuid_addresses, update
from bench.environments import NotSetUpError, worker_command
from bench.isa_check import Counts
from bench.output import machine
from sparsec.codegen.machine import machine_key
from sparsec.errors import TargetError
from sparsec.target import NAMED, host_target

TOOLS = pytest.mark.skipif(
    platform.machine() != "x86_64" or not (shutil.which("cc") and shutil.which("objdump")),
    reason="needs x86-64, cc and objdump",
)

# Prints what cpuid says of leaf 7 (ebx) before main, of leaf 7 and of leaf 0 (ebx: the maker's name). The constant has cpuid's bytes.
ASK = """
#include <cpuid.h>
#include <stdio.h>
#include <string.h>
static unsigned early;
__attribute__((constructor)) static void first(void)
{
    unsigned a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    early = b;
}
int main(int argc, char **argv)
{
    unsigned a, b, c, d, maker;
    __cpuid(0, a, maker, c, d);
    __cpuid_count(7, 0, a, b, c, d);
    volatile unsigned constant = 0xa20fa20f;
    printf("%u %u %u %u\\n", early, b, maker, constant);
    if (argc > 1 && strcmp(argv[1], "trap") == 0)
        __builtin_trap();
    return 0;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the program, bin/ask, and the table that knows it, cpuid.txt."""
    made = tmp_path_factory.mktemp("isa")
    (made / "bin").mkdir()
    (made / "ask.c").write_text(ASK)
    subprocess.run([str(shutil.which("cc")), "-O1", "-o", str(made / "bin" / "ask"), str(made / "ask.c")], check=True)
    update(made / "cpuid.txt", made / "bin" / "ask")
    return made


def ask(program: Path, variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def variables(folder: Path, bits: dict[tuple[int, str, str], tuple[int, ...]]) -> dict[str, str]:
    return {
        "LD_AUDIT": str(isa.library(folder)),
        "SPARSEC_CPUID_MASK": isa.mask(bits),
        "SPARSEC_CPUID_TABLE": str(folder / "cpuid.txt"),
    }


@TOOLS
def test_features_are_hidden_and_nothing_else(folder: Path) -> None:
    plain = [int(word) for word in ask(folder / "bin" / "ask", {}).stdout.split()]
    hiding = variables(folder, {(7, "0", "ebx"): (3, 5)})  # BMI1, AVX2
    hidden = [int(word) for word in ask(folder / "bin" / "ask", hiding).stdout.split()]
    assert plain[1] & 0b101000
    assert hidden[0] == hidden[1] == plain[1] & ~0b101000
    assert hidden[2:] == plain[2:]
    assert plain[3] == 0xA20FA20F


@TOOLS
def test_illegal_instructions_stay_illegal(folder: Path) -> None:
    assert ask(folder / "bin" / "ask", variables(folder, {(7, "0", "ebx"): (5,)}), "trap").returncode == -4


@TOOLS
def test_what_is_not_in_the_table_does_not_run(folder: Path) -> None:
    changed = folder / "changed"
    shutil.copy(folder / "bin" / "ask", changed)
    done = ask(changed, variables(folder, {(7, "0", "ebx"): (5,)}))
    assert (done.returncode, done.stdout) == (97, "")
    assert f"{changed} is not in the table" in done.stderr


@TOOLS
def test_the_table_grows_by_what_is_new(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, program = folder / "cpuid.txt", folder / "bin" / "ask"
    first = table.read_text()
    (line,) = [line for line in first.splitlines() if line.startswith(f"{program}\t")]
    assert len(line.split("\t")[3].split()) == 3
    update(table, program)
    assert (table.read_text(), capsys.readouterr().err) == (first, "")


@TOOLS
def test_cpuid_is_told_from_its_bytes(folder: Path) -> None:
    elf = (folder / "bin" / "ask").read_bytes()
    found = cpuid_addresses(elf)
    assert elf.count(CPUID) > len(found) == 3


def test_masks_name_every_register() -> None:
    bits = {(7, "0", "ecx"): (0, 4), (7, "0", "ebx"): (31,), (0x1D, "*", "eax"): (1,)}
    assert isa.mask(bits) == "7.0:0,80000000,11,0;1d.*:2,0,0,0"


@TOOLS
def test_counts_what_is_run(tmp_path: Path) -> None:
    source, made, counts = tmp_path / "spin.c", tmp_path / "spin", tmp_path / "counts"
    source.write_text("int main(void) { for (volatile long i = 0; i < 300000000; i++) {} return 0; }")
    subprocess.run([str(shutil.which("cc")), "-O1", "-o", str(made), str(source)], check=True)
    counts.write_bytes(bytes(24))
    assert ask(made, {"LD_AUDIT": str(isa.library(tmp_path)), "SPARSEC_CPUID_COUNTS": str(counts)}).returncode == 0
    data = counts.read_bytes()
    samples, beyond, asked = (int.from_bytes(data[i : i + 8], sys.byteorder) for i in (0, 8, 16))
    assert samples > 10
    assert (beyond, asked) == (0, 0)


@TOOLS
def test_flags_of_the_system_are_hidden_too(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    source, made = tmp_path / "read.c", tmp_path / "read"
    source.write_text("""
        #include <fcntl.h>
        #include <stdio.h>
        #include <unistd.h>
        int main(void)
        {
            char line[64];
            int file = openat(AT_FDCWD, "/proc/cpuinfo", O_RDONLY);
            printf("%d ", (int)read(file, line, sizeof line));
            fputs(fgets(line, sizeof line, fopen("/proc/cpuinfo", "r")), stdout);
            return 0;
        }""")
    subprocess.run([str(shutil.which("cc")), "-w", "-o", str(made), str(source)], check=True)
    between = {"LD_PRELOAD": str(isa.between(tmp_path)), "SPARSEC_CPUINFO": str(tmp_path / "cpuinfo")}
    assert ask(made, between).stdout == "18 flags\t\t: fpu avx2\n"


def test_flags_behind_avx2_are_left_out() -> None:
    line = "flags\t\t: fpu avx2 avx512f gfni bmi2 avx_vnni fma avx512_vnni vaes amx_int8"
    assert isa.without(line) == "flags\t\t: fpu avx2 bmi2 fma"


def test_share_of_no_samples() -> None:
    assert (Counts(0, 0, 0).share, Counts(8, 2, 0).share) == (0, 0.25)


def test_a_host_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_HOST", "x86-avx2")
    assert (host_target().name, host_target().features) == ("cpu", NAMED["x86-avx2"].features)
    assert (isa.chosen(), machine()["isa"]) == ("avx2", "avx2")
    key = machine_key()
    monkeypatch.setenv("SPARSEC_HOST", "x86-avx512")
    assert machine_key() != key
    monkeypatch.setenv("SPARSEC_HOST", "x86-avx3")
    with pytest.raises(TargetError, match="unknown target 'x86-avx3'; did you mean 'x86-avx2'"):
        host_target()


def test_the_option_reaches_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_HOST", "")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    seen: list[str] = []

    def run(_path: Path | None) -> int:
        seen.append(isa.chosen())
        return 0

    monkeypatch.setattr(roof, "run", run)
    assert main(["roof", "--isa", "avx2"]) == 0
    assert main(["roof", "--isa", "native"]) == 0
    assert seen == ["avx2", "native"]
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit, match="--isa avx2: this machine is aarch64"):
        main(["roof", "--isa", "avx2"])


def test_rivals_built_for_an_instruction_set_are_set_up_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_BENCH", str(tmp_path))
    monkeypatch.setenv("SPARSEC_HOST", "x86-avx2")
    with pytest.raises(NotSetUpError, match="python -m bench setup --isa avx2 ggml"):
        worker_command("ggml", 1)
    monkeypatch.setattr(isa, "hiding", lambda *_: {"HIDDEN": "yes"})
    assert worker_command("openblas", 1).environment["HIDDEN"] == "yes"
    ours = worker_command("sparsec", 1).environment
    assert "HIDDEN" not in ours
    assert "-AVX512F" in ours["GLIBC_TUNABLES"]
