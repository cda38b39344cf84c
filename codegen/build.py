"""Kernel specs -> object files, through a content-addressed cache and a pool of worker processes.

The cache key covers the spec, the target and the sources of the generator (sources.py), so a changed generator never meets a stale object,
and a program whose kernels are all cached never starts TVM.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsec.cache import entry, used, writing
from sparsec.codegen.nvrtc import compiler_version, require_compiler
from sparsec.codegen.program import KernelSpec
from sparsec.codegen.sources import family_digest
from sparsec.errors import ToolchainError
from sparsec.target import Target


@dataclass(frozen=True)
class BuiltKernel:
    """A compiled kernel: its C symbol, its object file, and what its family found out while building."""

    symbol: str
    object_path: Path
    meta: dict[str, Any]


def kernel_key(spec: KernelSpec, target: Target) -> str:
    """Cache key of a kernel. The target's name is left out: `cpu` and `x86-avx2` share objects."""
    described = {k: v for k, v in target.describe().items() if k != "name"}
    text = spec.canonical() + json.dumps(described, sort_keys=True) + family_digest(spec.family, bool(target.gpu))
    if target.gpu:
        text += compiler_version()
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class _Worker:
    """One worker process; restarted after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  the worker's stderr, read back only if it dies

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Send one job and wait for its answer; a crash of the worker is an answer too."""
        if self._process is None or self._process.poll() is not None:
            self._log.truncate(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sparsec.codegen.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = process.wait()
        self._log.seek(0)
        return {"ok": False, "error": f"the kernel compiler ended with status {code}\n{self._log.read()[-2000:]}"}

    def close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


# Starting TVM takes seconds: workers stay for the next call and end with this process (their stdin closes).
_idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()


def _take_worker() -> _Worker:
    try:
        return _idle.get_nowait()
    except queue.Empty:
        return _Worker()


@atexit.register
def _close_workers() -> None:
    while not _idle.empty():
        _idle.get().close()


def build_kernels(
    specs: Iterable[KernelSpec],
    target: Target,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, BuiltKernel]:
    """Compile every distinct spec for `target`; returns canonical spec text -> BuiltKernel.

    `jobs` worker processes run at once (default: one per core). `progress(done, total)` is called after each kernel.
    Raises ToolchainError naming every kernel that failed.
    """
    distinct = {spec.canonical(): spec for spec in specs}
    built: dict[str, BuiltKernel] = {}
    todo: queue.SimpleQueue[tuple[str, KernelSpec, Path]] = queue.SimpleQueue()
    missing = 0
    for text, spec in sorted(distinct.items()):
        base = entry("kernels", kernel_key(spec, target))
        if (hit := _cached(spec, target, base)) is not None:
            built[text] = hit
        else:
            todo.put((text, spec, base))
            missing += 1
    done = len(built)
    if progress:
        progress(done, len(distinct))
    if not missing:
        return built

    if target.gpu:
        require_compiler(target.gpu)  # said once, not by every kernel
    errors: list[str] = []
    lock = threading.Lock()

    def serve() -> None:
        nonlocal done
        worker = _take_worker()
        try:
            while True:
                try:
                    text, spec, base = todo.get_nowait()
                except queue.Empty:
                    return
                failure = ""
                try:
                    _compile(worker, spec, target, base)
                except _Failed as error:
                    failure = str(error)
                with lock:
                    done += 1
                    if failure:
                        errors.append(
                            f"{spec.family} {json.dumps(dict(spec.params), sort_keys=True)[:400]}:\n{failure}"
                        )
                    else:
                        hit = _cached(spec, target, base)
                        assert hit is not None
                        built[text] = hit
                    if progress:
                        progress(done, len(distinct))
        finally:
            _idle.put(worker)

    count = min(missing, jobs or os.cpu_count() or 1)
    threads = [threading.Thread(target=serve) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise ToolchainError(f"{len(errors)} kernel(s) could not be compiled:\n" + "\n".join(sorted(errors)))
    return built


def plan_kernels(spec: KernelSpec, target: Target) -> dict[str, Any]:
    """What the family's `plan(params)` says, which needs TVM: found out in a worker, and kept. Raises ToolchainError."""
    path = entry("plans", kernel_key(spec, target)).with_suffix(".json")
    if not used(path):
        worker = _take_worker()
        try:
            answer = worker.run(
                {
                    "family": spec.family,
                    "params": dict(spec.params),
                    "target": target.describe(),
                    "plan": True,
                }
            )
        finally:
            _idle.put(worker)
        if not answer["ok"]:
            raise ToolchainError(str(answer["error"]))
        with writing(path) as made:
            made.write_text(json.dumps(answer["meta"], sort_keys=True))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _cached(spec: KernelSpec, target: Target, base: Path) -> BuiltKernel | None:
    meta_path = base.with_suffix(".json")
    if not used(meta_path) or not used(base.with_suffix(".o")):
        return None
    return BuiltKernel(kernel_symbol(spec, target), base.with_suffix(".o"), json.loads(meta_path.read_text()))


def kernel_symbol(spec: KernelSpec, target: Target) -> str:
    """The C symbol of a kernel: family and cache key, so equal kernels of one program share one function."""
    return f"spc_{spec.family.replace('.', '_')}_{kernel_key(spec, target)[:12]}"


class _Failed(Exception):
    """A kernel that the worker could not compile."""


def _compile(worker: _Worker, spec: KernelSpec, target: Target, base: Path) -> None:
    """Compile into the cache; raises _Failed. The .json is written last: it marks a complete entry."""
    with writing(base.with_suffix(".json")) as meta, writing(base.with_suffix(".o")) as obj:
        job = {
            "family": spec.family,
            "params": dict(spec.params),
            "storage": list(spec.storage),
            "target": target.describe(),
            "symbol": kernel_symbol(spec, target),
            "object": str(obj),
        }
        answer = worker.run(job)
        if not answer["ok"]:
            raise _Failed(str(answer["error"]))
        meta.write_text(json.dumps(answer["meta"], sort_keys=True))
