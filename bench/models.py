"""`python -m bench models`: whole models, ours against the rivals, in turns, one thread and all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import isa
from bench.contests import Bar, Candidate, of
from bench.interleave import Series, Worker, interleave, speedup, start
from bench.model_files import files_of
from bench.operators import RELAX_SHARE, measure, slow_relax
from bench.output import markdown, write_json
from bench.results import absent_text, bar_text, judge, met_text, number
from bench.zoo import get

HEADERS = (
    "model", "scheme", "threads", "ms", "+-%", "fastest rival", "its ms", "x faster", "bar", "met", "speed-up over 1 thread", "cores",
)  # fmt: skip

RELAX_HEADERS = ("model", "scheme", "largest", "share %", "all Relax steps %", "steps")

# Convolutions but the first (it sees three channels) and the depthwise ones; the last layer stays as it is.
_CONVOLUTIONS = {"targets": "Conv", "ignore": ["@first"]}
_POINTWISE = {"targets": "Conv", "ignore": ["@first", "DepthwiseConv"]}
# Inputs of coded weights are rounded while running, as the int8 rivals do; float32 weights know no such products.
_LINEAR = {"targets": ["MatMul", "Gemm"], "optional": True, "activations": "int8"}


@dataclass(frozen=True)
class Entry:
    """A model's rows: our schemes with their bars, the part of the model they apply to, and the rivals."""

    rule: Mapping[str, Any]
    schemes: Mapping[str, tuple[Bar, ...]]
    rivals: tuple[Candidate, ...]
    transformer: bool = False


def ours(scheme: str) -> Candidate:
    return Candidate("sparsec", scheme)


def alone(scheme: str) -> Candidate:
    """Ours with one thread, in the same rounds as with all."""
    return Candidate("sparsec", f"{scheme}, 1 thread")


_FP32 = (*of("ort", "fp32"), *of("openvino", "fp32"), *of("litert", "fp32"), *of("deepsparse", "fp32"))
_INT8 = (*of("ort", "int8-static"), *of("openvino", "int8"), *of("litert", "int8"))
_INT8_BERT = (*of("ort", "int8-dynamic"), *of("openvino", "int8"))
_SPARSE = of("deepsparse", "s90", "s90-block4")
_SPARSE_BERT = of("deepsparse", "s80", "s90")
_IMAGE = (*_FP32, *_INT8, *_SPARSE)
_BERT = (*_FP32, *_INT8_BERT, *_SPARSE_BERT)

GQSA = "s16x1@50-cb4-g32"


def _ahead(everyone: tuple[Candidate, ...]) -> Bar:
    """With all threads: not behind anybody."""
    return Bar(1.0, everyone, threads="all")


ENTRIES = {
    "mobilenet_v2_random": Entry(
        _POINTWISE,
        {
            "fp32": (Bar(1.0, _FP32),),
            "s90": (
                Bar(2.0, (*_FP32, *_SPARSE), threads="one"),
                Bar(1.5, _INT8, threads="one"),
                _ahead(_IMAGE),
            ),
            "s90 x int16": (
                Bar(2.0, (*_FP32, *_SPARSE), threads="one"),
                Bar(1.5, _INT8, threads="one"),
                _ahead(_IMAGE),
            ),
            "s2x1@90": (Bar(1.1, (ours("s90"),)), _ahead(_IMAGE)),
        },
        _IMAGE,
    ),
    "resnet50_random": Entry(
        _CONVOLUTIONS,
        {
            "fp32": (Bar(1.0, _FP32),),
            "s90": (Bar(2.0, _SPARSE, threads="one"), Bar(1.5, _INT8, threads="one"), _ahead(_IMAGE)),
            "s90 x int16": (Bar(2.0, _SPARSE, threads="one"), Bar(1.5, _INT8, threads="one"), _ahead(_IMAGE)),
            "s2x1@90": (Bar(1.2, (ours("s90"),)), _ahead(_IMAGE)),
        },
        _IMAGE,
    ),
    "minilm": Entry(
        _LINEAR,
        {
            "fp32": (Bar(1.0, _FP32),),
            "s80": (Bar(1.6, of("deepsparse", "s80"), threads="one"), _ahead(_BERT)),
            "s90": (Bar(1.6, of("deepsparse", "s90"), threads="one"), _ahead(_BERT)),
            "s80 x int16": (Bar(1.6, of("deepsparse", "s80"), threads="one"), _ahead(_BERT)),
            "s90 x int16": (Bar(1.6, of("deepsparse", "s90"), threads="one"), _ahead(_BERT)),
            "cb4-g32": (Bar(1.3, _INT8_BERT, threads="one"), _ahead(_BERT)),
            GQSA: (Bar(1.8, _INT8_BERT, threads="one"), _ahead(_BERT)),
        },
        _BERT,
        transformer=True,
    ),
}  # fmt: skip
"""The models of the bars. Others of the zoo are compared with onnxruntime fp32, dense and with `--recipe`."""


def entry_of(name: str, recipes: Sequence[str]) -> Entry:
    """A model's rows; recipes on the command line come on top, without bars, over the whole model."""
    known = ENTRIES.get(name, Entry({"targets": "*"}, {"fp32": ()}, of("ort", "fp32")))
    extra = {recipe: () for recipe in recipes if recipe not in known.schemes}
    return Entry(known.rule, {**known.schemes, **extra}, known.rivals, known.transformer)


def run(
    names: Sequence[str],
    recipes: Sequence[str],
    threads: Sequence[int],
    rounds: int,
    families: Sequence[str],
    json_path: Path | None,
) -> int:
    """Print the tables; 1 if something of ours could not be timed or a step from Relax takes more than its share.

    families: rivals to meet (empty: all).
    """
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    absent: dict[str, str] = {}
    for name in names:
        results += _model(name, entry_of(name, recipes), recipes, threads, rounds, families, problems, absent)
    print(isa.title() + markdown(HEADERS, [row(r) for r in results], left=2))
    print(absent_text(absent))
    for problem in problems:
        print(f"\nnot timed: {problem}")
    timed = dict.fromkeys((r["model"], r["scheme"]) for r in results)
    relax = [_relax(name, scheme, recipes, max(4, rounds // 2)) for name, scheme in timed]
    print(f"\nlargest step that came through Relax (limit {100 * RELAX_SHARE:.0f} % of the steps' time, 1 thread)\n")
    print(markdown(RELAX_HEADERS, [_relax_row(r) for r in relax], left=3))
    write_json(json_path, {"results": results, "relax": relax, "absent": absent, "problems": problems})
    return 1 if problems or any(r["flagged"] for r in relax) else 0


def _relax(name: str, scheme: str, recipes: Sequence[str], rounds: int) -> dict[str, Any]:
    """The steps that came through Relax in the model compiled with a row's recipe."""
    steps = measure(name, _recipe(entry_of(name, recipes), scheme, recipes), 1, rounds)
    relaxed = [r for r in steps if r["family"] == "relax"]
    return {
        "model": name,
        "scheme": scheme,
        "steps": len(relaxed),
        "share": sum(r["share"] for r in relaxed),
        "largest": relaxed[0] if relaxed else None,
        "flagged": bool(slow_relax(steps)),
    }


def _relax_row(r: dict[str, Any]) -> list[str]:
    largest = r["largest"]
    return [
        r["model"],
        r["scheme"],
        "none" if largest is None else f"{largest['op']} '{largest['node']}'"[:60],
        "-" if largest is None else f"{100 * largest['share']:.1f}",
        f"{100 * r['share']:.1f}",
        str(r["steps"]),
    ]


def _model(
    name: str,
    entry: Entry,
    recipes: Sequence[str],
    threads: Sequence[int],
    rounds: int,
    families: Sequence[str],
    problems: list[str],
    absent: dict[str, str],
) -> list[dict[str, Any]]:
    from sparsec.errors import SparsecError

    results: list[dict[str, Any]] = []
    files = files_of(get(name))
    rivals = [r for r in entry.rivals if not families or r.family in families]
    with TemporaryDirectory(prefix="sparsec-bench-") as scratch:
        bundles: dict[str, tuple[Path, int]] = {}
        for index, scheme in enumerate(entry.schemes):
            _say(f"{name}: compiling {scheme} ...")
            try:
                bundles[scheme] = _compile(name, _recipe(entry, scheme, recipes), Path(scratch) / str(index))
            except SparsecError as error:
                problems.append(f"{name}, {scheme}: {str(error).splitlines()[0]}")
        for count in threads:
            _say(f"{name}: {count} thread(s) ...")
            with ExitStack() as stack:
                workers: dict[Candidate, Worker] = {}
                for scheme, (path, stored) in bundles.items():
                    for candidate, used in ((ours(scheme), count), (alone(scheme), 1))[: min(count, 2)]:
                        job = {
                            "kind": "compiled", "source": str(path),
                            "weights": None, "threads": used, "layers": 1, "stored": stored,
                            "inputs": str(files.inputs),
                        }  # fmt: skip
                        start(candidate, job, workers, stack, problems, absent, f"{name}: ")
                for rival in rivals:
                    job = files.job(rival.family, rival.variant, count, entry.transformer)
                    start(rival, job, workers, stack, problems, absent, f"{name}: ")
                series, errors = interleave(workers, rounds=rounds, threads=count)
            problems += [f"{name}, {c}: {text}" for c, text in errors.items()]
            for scheme in bundles:
                if ours(scheme) in series:
                    results += compare(name, entry, scheme, count, series)
    return results


def _recipe(entry: Entry, scheme: str, recipes: Sequence[str]) -> Any:
    """What a row is compiled with: a recipe of the command line as it is, else the entry's rule."""
    known = ENTRIES.values()
    if scheme in recipes and not any(entry.rule is e.rule and scheme in e.schemes for e in known):
        return scheme
    return recipe_of(entry.rule, scheme)


def recipe_of(rule: Mapping[str, Any], scheme: str) -> Any:
    """The recipe of a row ("s90", "s90 x int16"), None for the dense model. Small layers are pruned, too, as in the rivals' files."""
    scheme, _, activations = scheme.partition(" x ")
    asked = {**rule, "scheme": scheme} | ({"activations": activations} if activations else {})
    return None if scheme == "fp32" else {"version": 1, "min_elements": 0, "rules": [asked]}


def _compile(name: str, recipe: Any, path: Path) -> tuple[Path, int]:
    """(bundle, bytes of its weights)."""
    made = get(name).compile(recipe)
    return made.save(path), made.weights_bytes


def compare(
    name: str, entry: Entry, scheme: str, threads: int, series: Mapping[Candidate, Series]
) -> list[dict[str, Any]]:
    """One result for every bar of a row, or one without a bar, against the fastest rival of any kind."""
    bars = [bar for bar in entry.schemes[scheme] if bar.holds_for("hot", threads)] or [Bar(0, entry.rivals)]
    mine = series[ours(scheme)]
    scaling = speedup(series, ours(scheme), alone(scheme)) if alone(scheme) in series else None
    facts = {
        "model": name, "scheme": scheme, "threads": threads, "scaling": scaling, "cores": mine.cores, "weights_bytes": mine.stored,
        "all_us": {str(c): s.median for c, s in series.items()},
    }  # fmt: skip
    return [{**facts, **judge(bar, ours(scheme), series)} for bar in bars]


def row(r: dict[str, Any]) -> list[str]:
    """Cells under HEADERS."""
    return [
        r["model"],
        r["scheme"],
        str(r["threads"]),
        number(r["us"], 2, 1e-3),
        number(r["spread"], 0, 100),
        r["rival"] or "none timed",
        number(r["rival_us"], 2, 1e-3),
        number(r["speedup"], 2),
        bar_text(r),
        met_text(r),
        number(r["scaling"], 2),
        number(r["cores"], 1) if r["threads"] > 1 else "-",
    ]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
