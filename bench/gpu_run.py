"""`bench gpu --run`: times what gpu_prepare.py wrote, on the GPU of this machine. Needs numpy and the driver; rivals need torch.

Calls are captured in a CUDA graph that goes through copies of the weight, together several times the level-2 cache, so that weights
come from memory; two events around each replay give times, and the median counts. Whole models and their rivals are single graphs,
timed from the call to the end of waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bench import gpu_rivals, gpu_roofs
from bench.blobs import BlobReader
from bench.gpu_bars import WRONG, Roofs, Row
from bench.gpu_driver import Gpu, GpuError, Workspace
from bench.gpu_models import error_of, feed_of, opened, wall_seconds
from sparsec.errors import SparsecError

Array = np.ndarray[Any, Any]
Entry = Mapping[str, Any]

REPLAYS = 30
_ERROR = 0.01
"""Of the largest result: what a product may be off."""


Candidate = tuple[str, str, Callable[[], Row]]
"""Job, name, and what makes its row."""


class LostError(Exception):
    """A kernel ended this process's use of the GPU; another process can go on behind the rows that are there."""


def candidates(archive: BlobReader, gpu: Gpu, only: Sequence[str] = ()) -> Iterator[Candidate]:
    """Everything in the archive, each product and model followed by the rivals; `only` names products and models."""
    why_no_torch = gpu_rivals.why_not()
    for kind, timed, rivals in (
        ("products", _product, gpu_rivals.of_product),
        ("models", _model, gpu_rivals.of_model),
    ):
        entries = [e for e in archive.index[kind] if not only or e["job"] in only]
        for job in dict.fromkeys(e["job"] for e in entries):
            of_job = [e for e in entries if e["job"] == job]
            for entry in of_job:
                yield job, entry["scheme"], partial(timed, archive, gpu, entry)
            for name, make in rivals(archive, of_job[0]):
                yield job, name, partial(gpu_rivals.row, job, name, make, why_no_torch)


def measure(
    archive: BlobReader,
    gpu: Gpu,
    rows: list[Row],
    only: Sequence[str] = (),
    keep: Callable[[Row], None] = lambda row: None,
) -> None:
    """Append a row for every candidate that `rows` does not have; `keep` is told of each. Raises LostError."""
    done = {(row.job, row.candidate) for row in rows}
    for job, name, make in candidates(archive, gpu, only):
        if (job, name) in done:
            continue
        rows.append(make())
        keep(rows[-1])
        if not gpu.alive():
            raise LostError(f"{job} {name}")


def roofs(archive: BlobReader, gpu: Gpu) -> Roofs:
    """What the GPU does at most; raises GpuError."""
    with Workspace(gpu) as work:
        read, copied = gpu_roofs.measure(archive, work)
    return Roofs(read, copied, 0.0 if gpu_rivals.why_not() else gpu_rivals.matmul_roof())


def _product(archive: BlobReader, gpu: Gpu, entry: Entry) -> Row:
    if "refused" in entry:
        return Row(entry["job"], entry["scheme"], None, note=entry["refused"])
    copies = gpu_rivals.copies_of(entry["stored_bytes"], archive.index["cold_bytes"])
    try:
        with Workspace(gpu) as work:
            seconds, right = time_product(archive, work, entry, copies)
    except GpuError as error:
        return Row(entry["job"], entry["scheme"], None, note=str(error)[:80])
    kernels = len(entry["calls"])
    note = WRONG if not right else f"{kernels} kernels" if kernels > 1 else ""
    m, n, k, stored = (entry[key] for key in ("m", "n", "k", "stored_bytes"))
    return Row(entry["job"], entry["scheme"], seconds, stored, stored + 2 * m * (n + k), 2 * m * n * k, note)


def time_product(
    archive: BlobReader, work: Workspace, entry: Entry, copies: int, replays: int = REPLAYS
) -> tuple[float, bool]:
    """(seconds of a call, whether its results are right); weights lie in memory `copies` times."""
    m, n = entry["m"], entry["n"]
    shared = {name: work.upload(np.zeros(size, np.uint8)) for name, size in entry["sizes"].items()}
    work.write(shared[entry["a"]], np.resize(archive.array(entry["inputs"]), (m, entry["k"])))
    weights = {name: archive.array(kept) for name, kept in entry["weights"].items()}
    places = [{name: work.upload(array) for name, array in weights.items()} for _ in range(copies)]
    kernels = [work.kernel(archive.get(c["image"]), c["symbol"], c["shared_bytes"]) for c in entry["calls"]]
    stream = work.stream()

    def call(copy: int) -> None:
        for kernel, facts in zip(kernels, entry["calls"], strict=True):
            arguments = [places[copy].get(name) or shared[name] for name in facts["buffers"]]
            work.start(kernel, facts["grid"], facts["block"], facts["shared_bytes"], arguments, stream)

    right = True
    for copy in (0, copies - 1):
        call(copy)
        work.wait(stream)
        found = work.read(shared[entry["c"]], np.empty((m, n), np.float16))
        right = right and _right(found, archive.array(entry["wanted"]))

    def all_copies() -> None:
        for copy in range(copies):
            call(copy)

    graph = work.graph(stream, all_copies)
    work.replay_seconds(graph, stream, 2)
    return median(work.replay_seconds(graph, stream, replays)) / copies, right


def _right(found: Array, wanted: Array) -> bool:
    """Whether C [M, N] is `wanted` [rows, outputs], which repeats along both axes."""
    rows, outputs = wanted.shape
    limit = _ERROR * np.abs(wanted).max()
    at = np.arange(found.shape[1]) % outputs
    return all(
        bool((np.abs(row - wanted[i % rows, at]) <= limit).all()) for i, row in enumerate(found.astype(np.float32))
    )


def _model(archive: BlobReader, gpu: Gpu, entry: Entry) -> Row:
    try:
        with opened(archive, entry) as session, Workspace(gpu) as work:
            error = error_of(archive, entry, session.run(feed_of(archive, entry)))
            ins = [work.upload(array) for array in feed_of(archive, entry).values()]
            outs = [work.empty(archive.array(kept).nbytes) for kept in entry["outputs"].values()]
            seconds = wall_seconds(lambda: session._call("spc_session_run_device", ins, outs))
    except (GpuError, SparsecError) as problem:
        return Row(entry["job"], entry["scheme"], None, note=str(problem)[:80])
    note = "" if error <= entry["bound"] else f"{WRONG}: off by {error:.2g}"
    return Row(entry["job"], entry["scheme"], seconds, entry["stored_bytes"], note=note)
