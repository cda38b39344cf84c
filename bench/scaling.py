"""`python -m bench scaling`: what compression takes as models get deeper, and with one or two Dask workers.

Depth: a Llama of random weights, calibrated on random tokens. Workers: MiniLM on 64 sentences, where its data is there.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.output import markdown, write_json
from bench.scores import calibration
from bench.zoo import MissingData, get
from bench.zoo.base import ZooModel, from_module

DEPTHS = (3, 6, 12)
WIDTH, HIDDEN, HEADS, VOCABULARY, TOKENS = 192, 512, 6, 256, 64
SAMPLES = 64
ASKED: Mapping[str, Mapping[str, Any]] = {
    "uint4-g32": {"recipe": "uint4-g32"},
    "s50": {"recipe": "s50"},
    "s16x1@50-cb4-g32": {"recipe": "s16x1@50-cb4-g32"},
    "a budget of 20 % of the float32 bytes": {"budget": 0.2},
}
"""By name: what is asked of `sparsec.compress`; a budget as a share of the dense bytes."""
WORKERS = ("uint4-g32", "int4-g32")


def run(json_path: Path | None) -> int:
    """Print both tables."""
    depths = _depths()
    rows = [
        [name, *(f"{seconds:.1f}" for seconds in found), f"{found[-1] / found[0]:.2f}"]
        for name, found in depths.items()
    ]
    headers = ["asked", *(f"{depth} layers, s" for depth in DEPTHS), f"{DEPTHS[-1]} over {DEPTHS[0]}"]
    print(markdown(headers, rows), flush=True)
    workers = _workers()
    rows = [[name, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}"] for name, (one, two) in workers.items()]
    if rows:
        print()
        print(markdown(("MiniLM, not sequential", "1 worker, s", "2 workers, s", "1 over 2"), rows))
    write_json(json_path, {"depths": DEPTHS, "seconds": depths, "workers": workers})
    return 0


def network(depth: int) -> ZooModel:
    """A Llama of so many layers with random weights: tokens int64 [1, TOKENS] -> logits."""
    import torch

    from bench.zoo import llama

    torch.manual_seed(0)
    module = llama.Prefill(llama.Config(WIDTH, HIDDEN, depth, HEADS, HEADS, VOCABULARY, TOKENS))
    return from_module(
        f"llama{depth}", module, {"tokens": torch.zeros(1, TOKENS, dtype=torch.int64)}, output_names=("logits",)
    )


def _depths() -> dict[str, list[float]]:
    import sparsec

    rng = np.random.default_rng(0)
    feeds = [{"tokens": rng.integers(0, VOCABULARY, (1, TOKENS))} for _ in range(SAMPLES)]
    found: dict[str, list[float]] = {name: [] for name in ASKED}
    for depth in DEPTHS:
        file = network(depth).onnx_file()
        for name, asked in ASKED.items():
            print(f"{depth} layers, {name} ...", file=sys.stderr, flush=True)
            what = dict(asked)
            if "budget" in what:
                what["budget"] = f"{int(what['budget'] * file.stat().st_size)}B"
            with _no_cache():
                start = time.perf_counter()
                sparsec.compress(file, **what, calibration=feeds, verify=False)
                found[name].append(time.perf_counter() - start)
    return found


def _workers() -> dict[str, tuple[float, float]]:
    """By scheme: seconds with one and with two workers of one thread each."""
    import sparsec

    try:
        model = get("minilm")
        from distributed import LocalCluster
    except (MissingData, ModuleNotFoundError) as missing:
        print(f"left out workers: {missing}", file=sys.stderr)
        return {}
    feeds, found = calibration("minilm")[:SAMPLES], {}
    for scheme in WORKERS:
        seconds = []
        for count in (1, 2):
            print(f"{count} workers, {scheme} ...", file=sys.stderr, flush=True)
            with (
                _no_cache(),
                LocalCluster(n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
            ):
                start = time.perf_counter()
                sparsec.compress(
                    model.onnx_file(),
                    {
                        "rules": [{"targets": "MatMul", "ignore": "Gather", "scheme": scheme, "optional": True}],
                        "calibrate": {"sequential": False},
                    },
                    input_shapes=model.input_shapes, input_values=model.input_values, verify=False, calibration=feeds,
                    executor=f"dask://{cluster.scheduler_address.removeprefix('tcp://')}",
                )  # fmt: skip
                seconds.append(time.perf_counter() - start)
        found[scheme] = (seconds[0], seconds[1])
    return found


@contextmanager
def _no_cache() -> Iterator[None]:
    """Layers solved before are not known, here and in worker processes."""
    before = os.environ.get("SPARSEC_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPARSEC_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("SPARSEC_CACHE")
            if before is not None:
                os.environ["SPARSEC_CACHE"] = before
