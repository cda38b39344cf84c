"""A child process that runs one model in one runner (sparsec or a rival) when told to.

Every runner gets a process of its own, so that thread pools and allocators do not disturb one another. Talks JSON lines:
first {"ready": ...}, then for each request {"runs": n} an answer {"ns": [...]}, the wall time of each of n runs.

    python -m bench.worker '{"runner": "ort", "model": "kws", "threads": 1, "recipe": null}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.zoo import ZooModel, get


def _sparsec(model: ZooModel, threads: int, recipe: str | None) -> Callable[[], object]:
    import sparsec

    compiled = sparsec.compile(
        model.onnx_file(),
        recipe=recipe,
        threads=threads,
        verify=False,
        input_shapes=model.input_shapes,
        input_values=model.input_values,
    )
    feed = model.random_inputs()
    return lambda: compiled.run(feed)


def _onnxruntime(model: ZooModel, threads: int, recipe: str | None) -> Callable[[], object]:
    if recipe is not None:
        raise ValueError(f"onnxruntime runs the uncompressed model, not recipe {recipe}")
    run, feed = model.reference_run(threads), model.random_inputs()
    return lambda: run(feed)


RUNNERS: dict[str, Callable[[ZooModel, int, str | None], Callable[[], object]]] = {
    "ort": _onnxruntime,
    "sparsec": _sparsec,
}


def serve(job: Mapping[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Load the model, then answer requests until standard input ends."""
    start = time.perf_counter()
    run = RUNNERS[job["runner"]](get(job["model"]), job["threads"], job["recipe"])
    run()
    answer({"ready": True, "setup_s": time.perf_counter() - start})
    for line in sys.stdin:
        times = []
        for _ in range(json.loads(line)["runs"]):
            begin = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - begin)
        answer({"ns": times})


def main() -> None:
    """Keep standard output for answers: whatever the libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    try:
        serve(json.loads(sys.argv[1]), answer)
    except Exception as error:  # the parent shows it in the table
        answer({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
