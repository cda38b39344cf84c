"""zig's cache: one an installation, first links one at a time."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsec.codegen import zig

# Stands for zig: notes when it starts and ends, and fails when it is told to.
FAKE = """
import sys, time
log = open(sys.argv[-1], "a")
print("start", time.monotonic(), file=log, flush=True)
time.sleep(0.3)
print("end", time.monotonic(), file=log, flush=True)
sys.exit("fail" in sys.argv)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "zig"))
    return tmp_path / "zig"


def command(log: Path, *flags: str) -> list[str]:
    fake = log.parent / "fake" / "zig"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text(f"#!{sys.executable}\n{FAKE}")
    fake.chmod(0o755)
    return [str(fake), "cc", "-target", "some-machine", *flags, str(log)]


def overlap(log: Path, count: int) -> bool:
    """Whether any two of the runs noted in `log` went on at the same time."""
    events = sorted((float(line.split()[1]), line.split()[0]) for line in log.read_text().splitlines())
    assert len(events) == 2 * count
    return [kind for _, kind in events] != ["start", "end"] * count


def at_once(commands: list[list[str]]) -> list[int]:
    with ThreadPoolExecutor(len(commands)) as executor:
        return [done.returncode for done in executor.map(zig.run, commands)]


def test_first_links_are_made_one_at_a_time(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert at_once([command(log, "-shared"), command(log, "-static")]) == [0, 0]
    assert not overlap(log, 2)
    assert {p.name for p in cache.glob("linked-*")} == {"linked-some-machine-shared", "linked-some-machine-static"}


def test_later_links_and_compilations_do_not_wait(cache: Path, tmp_path: Path) -> None:
    zig.run(command(tmp_path / "first", "-shared"))
    for name, flags in (("links", ["-shared"]), ("compilations", ["-c"])):
        log = tmp_path / name
        assert at_once([command(log, *flags)] * 3) == [0, 0, 0]
        assert overlap(log, 3)


def test_a_first_link_that_fails_does_not_count(cache: Path, tmp_path: Path) -> None:
    assert zig.run(command(tmp_path / "log", "fail")).returncode == 1
    assert not list(cache.glob("linked-*"))


def test_installations_do_not_share_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR")
    one = zig.environment()
    assert one["ZIG_GLOBAL_CACHE_DIR"] == zig.environment()["ZIG_GLOBAL_CACHE_DIR"]
    monkeypatch.setattr(zig, "_installation", lambda: "another")
    assert zig.environment()["ZIG_GLOBAL_CACHE_DIR"] != one["ZIG_GLOBAL_CACHE_DIR"]
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", "mine")
    assert zig.environment()["ZIG_GLOBAL_CACHE_DIR"] == "mine"
