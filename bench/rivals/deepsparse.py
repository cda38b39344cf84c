"""DeepSparse: whole models, dense and pruned. Runs on Python 3.10."""

from __future__ import annotations

import os

os.environ["NM_DISABLE_ANALYTICS"] = "1"

import numpy as np
from deepsparse.engine import Engine

from bench.rivals.protocol import CannotError, Job, Prepared, serve


def prepare(job: Job) -> Prepared:
    """variant of a model job: fp32. What is pruned in the file, the engine finds by itself."""
    if job["kind"] != "model" or job["variant"] != "fp32":
        raise CannotError(f"no {job['variant']} of kind {job['kind']}")
    engine = Engine(model=job["onnx"], batch_size=1, num_cores=job["threads"])
    feed = np.load(job["inputs"])
    inputs = [np.ascontiguousarray(feed[name]) for name in engine.input_names]
    note = "" if engine.fraction_of_supported_ops == 1 else f"{engine.fraction_of_supported_ops:.0%} of the operators"
    return Prepared(lambda: engine.run(inputs, val_inp=False), note=note)


if __name__ == "__main__":
    serve(prepare)
