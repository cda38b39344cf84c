"""`python -m bench kernels`: single products, our schemes against the rivals, in turns."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import isa
from bench.contests import (
    CONTESTS,
    SWEEP_PERCENT,
    SWEEP_TOLERANCE,
    SWEEPS,
    Candidate,
    Contest,
    Product,
    State,
    layers,
)
from bench.interleave import Series, Worker, interleave, start
from bench.layers import compiled_layer, layer_job
from bench.output import markdown, write_json
from bench.results import absent_text, bar_text, judge, met_text, number
from bench.share import Roof

HEADERS = (
    "product", "scheme", "state", "threads", "us", "+-%", "GB/s", "% roof", "fastest rival", "its us", "x faster", "bar", "met", "cores",
)  # fmt: skip
SWEEP_HEADERS = ("product", "scheme", "threads", "us", "+-%", "stored %", "us / stored, 50 % = 1", "bar", "met")

Log = Callable[[str], None]


def run(only: Sequence[str], threads: Sequence[int], rounds: int, roof: Path | None, json_path: Path | None) -> int:
    """Print the tables; 1 if something of ours could not be timed.

    Args:
        only: words; a contest is run when its name ("4096x4096, M = 8") or one of its tags (gemv, small, gemm, fp32,
            sweep) is among them. Empty: all.
        roof: JSON of `bench roof`; None: this machine's rates from the cache.
    """
    from sparsec.codegen.machine import this_machine

    figures = Roof.of(json.loads(roof.read_text()) if roof else {"roof": this_machine().to_json()})
    problems: list[str] = []
    absent: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    sweeps: list[dict[str, Any]] = []
    for contest in CONTESTS:
        if _chosen(only, str(contest.product), contest.tags):
            results += _contest(contest, threads, rounds, figures, problems, absent)
    for product, form in SWEEPS:
        if _chosen(only, str(product), ("sweep",)):
            sweeps += _sweep(product, form, threads, rounds, problems)
    if results:
        print(isa.title() + markdown(HEADERS, [row(r) for r in results], left=3))
    if sweeps:
        print("\n" + isa.title() + markdown(SWEEP_HEADERS, [sweep_row(r) for r in sweeps], left=2))
    print(absent_text(absent))
    for problem in problems:
        print(f"\nnot timed: {problem}")
    write_json(json_path, {"results": results, "sweeps": sweeps, "absent": absent, "problems": problems})
    return 1 if problems else 0


def _chosen(only: Sequence[str], name: str, tags: Sequence[str]) -> bool:
    return not only or any(word == name or word in tags for word in only)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- one product ---


def _contest(
    contest: Contest,
    threads: Sequence[int],
    rounds: int,
    roof: Roof | None,
    problems: list[str],
    absent: dict[str, str],
) -> list[dict[str, Any]]:
    from sparsec.errors import SchemeError, SparsecError
    from sparsec.formats import Scheme

    product, programs = contest.product, {}
    results: list[dict[str, Any]] = []
    for scheme in contest.schemes:
        try:
            Scheme.parse(scheme)
        except SchemeError:
            results.append(_missing(product, scheme, "not in the project yet"))
            continue
        _say(f"{product}: compiling {scheme} ...")
        try:
            programs[scheme] = compiled_layer(product, scheme)
        except SparsecError as error:
            problems.append(f"{product}, {scheme}: {str(error).splitlines()[0]}")
    for state in contest.states:
        for count in threads:
            _say(f"{product}: {state}, {count} thread(s) ...")
            with ExitStack() as stack:
                workers: dict[Candidate, Worker] = {}
                for scheme, program in programs.items():
                    ours = Candidate("sparsec", scheme)
                    job = stack.enter_context(layer_job(program, layers(product, ours, state), count))
                    start(ours, job, workers, stack, problems, absent)
                for rival in contest.rivals:
                    job = {
                        "kind": "layers", "variant": rival.variant, "m": product.m, "n": product.n, "k": product.k,
                        "layers": layers(product, rival, state), "threads": count,
                    }  # fmt: skip
                    start(rival, job, workers, stack, problems, absent, where=f"{product}: ")
                series, errors = interleave(workers, rounds=rounds, threads=count)
            problems += [f"{product}, {state}, {c}: {text}" for c, text in errors.items()]
            for scheme in programs:
                if Candidate("sparsec", scheme) in series:
                    results += compare(contest, scheme, state, count, series, roof)
    return results


def compare(
    contest: Contest, scheme: str, state: State, threads: int, series: dict[Candidate, Series], roof: Roof | None
) -> list[dict[str, Any]]:
    """One result for every bar of a row, or one without a bar."""
    ours = Candidate("sparsec", scheme)
    mine = series[ours]
    in_memory = roof.memory_share(mine, threads) if roof and state == "cold" else None
    count = layers(contest.product, ours, state)
    facts = {
        "product": str(contest.product),
        "scheme": scheme,
        "state": state,
        "threads": threads,
        "cores": mine.cores,
        "stored_bytes": mine.stored,
        "gb_s": mine.stored / mine.median / 1e3,
        "roof_share": roof.share(contest.product, scheme, mine, count, threads) if roof else None,
    }
    return [{**facts, **judge(bar, ours, series, in_memory)} for bar in contest.comparisons(scheme, state, threads)]


def _missing(product: Product, scheme: str, reason: str) -> dict[str, Any]:
    return {"product": str(product), "scheme": scheme, "missing": reason}


def row(r: dict[str, Any]) -> list[str]:
    """Cells under HEADERS."""
    if "missing" in r:
        return [r["product"], r["scheme"], r["missing"], *["-"] * (len(HEADERS) - 3)]
    return [
        r["product"],
        r["scheme"],
        r["state"],
        str(r["threads"]),
        number(r["us"], 1),
        number(r["spread"], 0, 100),
        number(r["gb_s"], 1),
        number(r["roof_share"], 0, 100),
        r["rival"] or "none timed",
        number(r["rival_us"], 1),
        number(r["speedup"], 2),
        bar_text(r),
        met_text(r),
        number(r["cores"], 1) if r["threads"] > 1 else "-",
    ]


# --- cost against sparsity ---


def _sweep(
    product: Product, form: str, threads: Sequence[int], rounds: int, problems: list[str]
) -> list[dict[str, Any]]:
    """Time of every sparsity of SWEEP_PERCENT, and how it follows the number of stored weights."""
    from sparsec.errors import SparsecError

    results = []
    programs = {}
    for percent in SWEEP_PERCENT:
        scheme = form.format(percent)
        _say(f"{product}: compiling {scheme} ...")
        try:
            programs[percent] = compiled_layer(product, scheme)
        except SparsecError as error:
            problems.append(f"{product}, {scheme}: {str(error).splitlines()[0]}")
    for count in threads:
        with ExitStack() as stack:
            workers: dict[Candidate, Worker] = {}
            for percent, program in programs.items():
                ours = Candidate("sparsec", form.format(percent))
                job = stack.enter_context(layer_job(program, layers(product, ours, "hot"), count))
                start(ours, job, workers, stack, problems, {})
            series, errors = interleave(workers, rounds=rounds, threads=count)
        problems += [f"{product}, {c}: {text}" for c, text in errors.items()]
        first = series.get(Candidate("sparsec", form.format(SWEEP_PERCENT[0])))
        for percent in programs:
            ours = Candidate("sparsec", form.format(percent))
            if ours in series and first is not None:
                results.append(proportion(product, ours.variant, percent, count, series[ours], first))
    return results


def proportion(
    product: Product, scheme: str, percent: int, threads: int, series: Series, first: Series
) -> dict[str, Any]:
    """How the time of one sparsity compares with that of the first one, both divided by their stored weights."""
    stored = (100 - percent) / 100
    relative = series.median / stored / (first.median / ((100 - SWEEP_PERCENT[0]) / 100))
    return {
        "product": str(product),
        "scheme": scheme,
        "threads": threads,
        "us": series.median,
        "spread": series.spread,
        "stored": stored,
        "relative": relative,
        "bar": SWEEP_TOLERANCE,
        "met": relative <= SWEEP_TOLERANCE,
    }


def sweep_row(r: dict[str, Any]) -> list[str]:
    """Cells under SWEEP_HEADERS."""
    return [
        r["product"],
        r["scheme"],
        str(r["threads"]),
        f"{r['us']:.1f}",
        f"{100 * r['spread']:.0f}",
        f"{100 * r['stored']:.0f}",
        f"{r['relative']:.2f}",
        f"{r['bar']:.2f}",
        "yes" if r["met"] else "no",
    ]
