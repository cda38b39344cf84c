"""ggml: ggml_mul_mat of its weight types, plain and repacked, through the program that `bench setup` builds of ggml_bench.c."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench import isa
from bench.rivals.protocol import CannotError, Job, Prepared, serve

# the process of the last job; it ends when the next one starts
_current: list[subprocess.Popen[str]] = []


def prepare(job: Job) -> Prepared:
    """variant: a ggml type ("q4_K"), with "-repacked" for weights in the buffer type that lays them out anew."""
    if job["kind"] != "layers":
        raise CannotError(f"no jobs of kind {job['kind']}")
    while _current:
        old = _current.pop()
        old.kill()
        old.communicate()
    kind, _, repacked = job["variant"].partition("-")
    numbers = [job["n"], job["k"], job["m"], job["layers"], job["threads"]]
    program = isa.program(Path(os.environ["SPARSEC_BENCH_FOLDER"]), isa.chosen())
    process = subprocess.Popen(
        [program, kind, str(int(repacked == "repacked")), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=sys.stderr,
        text=True,
    )
    _current.append(process)
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout, process.stdin
    word, _, rest = source.readline().strip().partition(" ")
    if word == "cannot":
        raise CannotError(rest)
    if word != "ready":
        raise RuntimeError(f"the program ended with status {process.wait()}")

    def times(count: int) -> list[int]:
        sink.write(f"{count}\n")
        sink.flush()
        return [int(t) for t in source.readline().split()]

    return Prepared(times=times, layers=job["layers"], stored=int(rest))


if __name__ == "__main__":
    serve(prepare)
