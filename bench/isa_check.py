"""`python -m bench isa`: which share of what candidates run is beyond AVX2, as they are and with `--isa avx2`.

A timer interrupts each candidate while it runs jobs of `bench kernels` and `bench models`, and looks at the instruction that comes next
(hide_cpuid.c). That is true of code made at run time, too, and of what a rival knows from somewhere else than the processor.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from bench import isa
from bench.contests import CONTESTS, Candidate, Contest
from bench.environments import Command, NotSetUpError, isa_folder, worker_command
from bench.interleave import CannotError, Worker, WorkerError
from bench.output import markdown, write_json
from bench.results import absent_text

HEADERS = ("candidate", "job", "native %", "samples", "hidden %", "samples", "asked")
PRODUCTS = ("4096x4096", "768x3072", "4096x4096, M = 32", "1536x384, M = 128")
MODELS = ("mobilenet_v2_random", "minilm")
SECONDS = 1.0
_COUNTS = struct.Struct("=QQQ")


@dataclass(frozen=True)
class Counts:
    """Samples taken while a candidate ran, those on instructions beyond AVX2, and how often it asked for the processor."""

    samples: int
    beyond: int
    asked: int

    @property
    def share(self) -> float:
        return self.beyond / max(1, self.samples)


def count(candidate: Candidate, job: Mapping[str, Any], seconds: float = SECONDS) -> Counts:
    """What a candidate's worker runs in `seconds`, with the chosen instruction set. Raises NotSetUpError, WorkerError, CannotError."""
    with NamedTemporaryFile(prefix="sparsec-bench-") as file:
        file.write(bytes(_COUNTS.size))
        file.flush()
        command = worker_command(candidate.family, job["threads"])
        counting = {"LD_AUDIT": str(isa.library(isa_folder())), "SPARSEC_CPUID_COUNTS": file.name}
        with Worker(Command(command.arguments, command.environment | counting)) as worker:
            worker.prepare(job)
            before = Path(file.name).read_bytes()
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                worker.time(3)
            after = Path(file.name).read_bytes()
    return Counts(*(b - a for a, b in zip(_COUNTS.unpack(before), _COUNTS.unpack(after), strict=True)))


def run(families: Sequence[str], json_path: Path | None) -> int:
    """Print the table; 1 if a candidate runs what is hidden from it, or none could be asked."""
    absent: dict[str, str] = {}
    found: dict[tuple[str, str], dict[str, Counts]] = {}
    before = isa.chosen()
    try:
        for name in (isa.NATIVE, *isa.HOSTS):
            isa.choose(name)
            with ExitStack() as stack:
                for candidate, where, job in _jobs(families, stack):
                    print(f"{name}: {candidate}, {where} ...", file=sys.stderr, flush=True)
                    try:
                        counts = count(candidate, job)
                    except (NotSetUpError, CannotError, WorkerError) as error:
                        absent[f"{candidate}, {where}, {name}"] = str(error)
                    else:
                        found.setdefault((str(candidate), where), {})[name] = counts
    finally:
        isa.choose(before)
    (hidden,) = isa.HOSTS
    rows = [_row(key, counts[isa.NATIVE], counts[hidden]) for key, counts in found.items() if len(counts) == 2]
    print(markdown(HEADERS, rows, left=2))
    print(absent_text(absent))
    seen = [
        {"candidate": candidate, "job": where, **{name: vars(c) for name, c in counts.items()}}
        for (candidate, where), counts in found.items()
    ]
    write_json(json_path, {"isa": seen, "absent": absent})
    return 1 if not rows or any(counts[hidden].beyond for counts in found.values() if hidden in counts) else 0


def _row(key: tuple[str, str], native: Counts, hidden: Counts) -> list[str]:
    both = (f"{100 * native.share:.1f}", str(native.samples), f"{100 * hidden.share:.1f}", str(hidden.samples))
    return [*key, *both, str(hidden.asked)]


def _jobs(families: Sequence[str], stack: ExitStack) -> Iterator[tuple[Candidate, str, Mapping[str, Any]]]:
    """Jobs of one thread that together use what the candidates have."""
    for contest in CONTESTS:
        if str(contest.product) in PRODUCTS:
            for candidate in (*(Candidate("sparsec", s) for s in contest.schemes), *contest.rivals):
                if not families or candidate.family in families:
                    with _layer_job(contest, candidate) as job:
                        yield candidate, str(contest.product), job
    for name in MODELS:
        yield from _model_jobs(name, families, stack)


@contextmanager
def _layer_job(contest: Contest, candidate: Candidate) -> Iterator[Mapping[str, Any]]:
    product = contest.product
    if candidate.family == "sparsec":
        from bench.layers import compiled_layer, layer_job

        with layer_job(compiled_layer(product, candidate.variant), 1, 1) as job:
            yield job
    else:
        yield {
            "kind": "layers", "variant": candidate.variant, "m": product.m, "n": product.n, "k": product.k, "layers": 1, "threads": 1,
        }  # fmt: skip


def _model_jobs(
    name: str, families: Sequence[str], stack: ExitStack
) -> Iterator[tuple[Candidate, str, Mapping[str, Any]]]:
    from bench.model_files import files_of
    from bench.models import ENTRIES, recipe_of
    from bench.zoo import MissingData, get

    entry = ENTRIES[name]
    try:
        model = get(name)
    except (MissingData, ModuleNotFoundError) as missing:
        print(f"left out {name}: {missing}", file=sys.stderr)
        return
    files = files_of(model)
    for rival in entry.rivals:
        if not families or rival.family in families:
            yield rival, name, files.job(rival.family, rival.variant, 1, entry.transformer)
    if not families or "sparsec" in families:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sparsec-bench-")))
        for scheme in entry.schemes:
            path = model.compile(recipe_of(entry.rule, scheme)).save(folder / scheme)
            job = {
                "kind": "compiled", "source": str(path), "weights": None, "threads": 1, "layers": 1, "stored": 0,
                "inputs": str(files.inputs),
            }  # fmt: skip
            yield Candidate("sparsec", scheme), name, job
