"""zig's own cache: one for each installation, filled by one process at a time.

zig deadlocks when two processes find the same entry of its cache missing or stale: each waits for the other's read lock on
the entry's manifest. Entries are stale for every other installation of zig, so installations do not share a cache; and the
first link of a kind, which builds the C library's start files and stubs, is made alone. Later links only read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sparsec.errors import ToolchainError


@cache
def _installation() -> str:
    """A name for this installation of ziglang."""
    spec = find_spec("ziglang")
    place = spec.origin if spec is not None and spec.origin else "none"
    return hashlib.sha256(place.encode()).hexdigest()[:16]


@cache
def command(tool: str) -> tuple[str, ...]:
    """How to call one of zig's tools (cc, ar, ld.lld): its binary itself, `python -m ziglang` takes three times as long.

    Raises ToolchainError where ziglang is not installed.
    """
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise ToolchainError(
            "the package ziglang is not installed; install it (pip install ziglang), or name a C compiler in SPARSEC_CC"
        )
    return (str(Path(spec.origin).with_name("zig")), tool)


def environment() -> dict[str, str]:
    """Variables that give this installation a cache of its own; those the user has set win."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = str(home / "sparsec-zig" / _installation())
    return {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder, **os.environ}


def run(words: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a compiler or linker with its output captured; zig's first successful link of a kind (target, static or shared)
    waits for others and keeps others waiting.

    Raises OSError when the command cannot be run at all.
    """

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=environment())

    flags = words[2:] if Path(words[0]).stem == "zig" and words[1] == "cc" else ["-c"]
    if "-c" in flags:
        return start()
    target = flags[flags.index("-target") + 1] if "-target" in flags else "native"
    kind = "-".join([target, *(flag[1:] for flag in ("-shared", "-static") if flag in flags)])
    folder = Path(environment()["ZIG_GLOBAL_CACHE_DIR"])
    linked = folder / f"linked-{kind}"
    if linked.exists():
        return start()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "first-links.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = start()
        if done.returncode == 0:
            linked.touch()
        return done
