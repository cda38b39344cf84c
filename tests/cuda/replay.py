"""Runs what `python -m tests.cuda.record` recorded on the GPU of this machine; needs Python, numpy and NVIDIA's driver.

    python -m tests.cuda.replay ARCHIVE [--only WORD]... [--every N] [--no-kernels] [--no-models] [--times N]

Every kernel starts from the recorded arguments and must leave what the simulator left, but for rounding (compare.py); models run
in the C runtime and must give what onnxruntime gave, within the bound of verification. All are run twice and must give the same bytes.
A line tells of each failure, the last one sums up; the exit status is 1 if something failed. After a fault, or a kernel that does not
end, the process starts itself anew behind it. Under compute-sanitizer: --target-processes all, --times 1, and --every N for few minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from bench.blobs import BlobReader
from bench.gpu_driver import Gpu, GpuError, Workspace, run_kernel
from bench.gpu_models import error_of, feed_of, opened
from sparsec.errors import SparsecError
from tests.cuda.compare import differences

Array = np.ndarray[Any, Any]
Entry = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = _options(arguments)
    try:
        archive = BlobReader(options.archive)
    except (OSError, BadZipFile) as problem:
        print(f"{options.archive} cannot be read ({problem}); python -m tests.cuda.record writes such a file")
        return 1
    try:
        gpu = Gpu()
    except OSError as missing:
        print(f"a replay needs an NVIDIA GPU; there is none here ({missing})")
        return 1
    entries = chosen(archive, options)
    if f"sm_{gpu.sm}" != (wanted := archive.index["arch"]):
        print(f"recorded for {wanted}, this is an sm_{gpu.sm} ({gpu.name})")
        return 1
    begin, failed = time.monotonic(), options.failed
    with Workspace(gpu):  # the context stays
        for at in range(options.start, len(entries)):
            kind, entry = entries[at]
            try:
                told = (check_kernel if kind == "kernel" else check_model)(archive, entry, gpu, options.times)
            except (GpuError, SparsecError) as error:
                print(f"FAILED {entry['name']}: {error}", flush=True)
                _start_again(arguments, at + 1, failed + 1)
            if told:
                print(f"FAILED {entry['name']}: {told}", flush=True)
                failed += 1
    kinds = [kind for kind, _ in entries]
    what = f"{kinds.count('kernel')} kernel checks and {kinds.count('model')} models"
    print(f"{what} on {gpu.name}: {failed} failed; {time.monotonic() - begin:.0f} s", flush=True)
    return int(failed > 0)


def chosen(archive: BlobReader, options: argparse.Namespace) -> list[tuple[str, Entry]]:
    """The checks that the command line asks for, in order."""
    kernels = [] if options.no_kernels else archive.index["kernels"]
    models = [] if options.no_models else archive.index["models"]
    every = [("kernel", k) for k in kernels][:: options.every] + [("model", m) for m in models]
    return [(kind, e) for kind, e in every if not options.only or any(word in e["name"] for word in options.only)]


def check_kernel(archive: BlobReader, entry: Entry, gpu: Gpu, times: int) -> str:
    """What is wrong with a kernel; "" if nothing. Raises GpuError."""
    given = [archive.array(a["given"]) for a in entry["arguments"]]
    wanted = [archive.array(a["wanted"]) for a in entry["arguments"]]
    launch = entry["grid"], entry["block"], entry["shared_bytes"]
    image = archive.get(entry["image"])
    runs = [run_kernel(gpu, image, entry["symbol"], *launch, given, shift=entry["shift"]) for _ in range(times)]
    return _unlike(runs) or differences(wanted, runs[0], [a["given"]["dtype"] for a in entry["arguments"]])


def check_model(archive: BlobReader, entry: Entry, gpu: Gpu, times: int) -> str:
    """What is wrong with a model; "" if nothing. Raises SparsecError."""
    with opened(archive, entry) as session:
        runs = [session.run(feed_of(archive, entry)) for _ in range(times)]
    error = error_of(archive, entry, runs[0])
    told = (
        ""
        if error <= entry["bound"]
        else f"largest error {error:.3g} of the largest output, bound {entry['bound']:.3g}"
    )
    return _unlike([list(run.values()) for run in runs]) or told


def _unlike(runs: Sequence[Sequence[Array]]) -> str:
    same = all(a.tobytes() == b.tobytes() for run in runs[1:] for a, b in zip(runs[0], run, strict=True))
    return "" if same else "two runs gave different bytes"


def _start_again(arguments: Sequence[str] | None, start: int, failed: int) -> None:
    """Go on in this process, whose context of the GPU may be lost, as a new program."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    more = ["--start", str(start), "--failed", str(failed)]
    os.execv(sys.executable, [sys.executable, "-m", "tests.cuda.replay", *given, *more])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="names that hold it (repeatable)")
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="each N-th kernel check: under compute-sanitizer"
    )
    parser.add_argument("--no-kernels", action="store_true")
    parser.add_argument("--no-models", action="store_true")
    parser.add_argument(
        "--times", type=int, default=2, metavar="N", help="runs of each, which must give the same bytes"
    )
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--failed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
