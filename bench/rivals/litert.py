"""LiteRT (XNNPACK): whole models converted from torch's exported program, fp32 and static int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from bench.rivals.protocol import CannotError, Job, Prepared, serve


def prepare(job: Job) -> Prepared:
    """variant of a model job: fp32, int8. `module` is a file of torch.export.save, `order` its inputs' names."""
    if job["kind"] != "model" or job["variant"] not in ("fp32", "int8"):
        raise CannotError(f"no {job['variant']} of kind {job['kind']}")
    path = _converted(job) if job["variant"] == "fp32" else _quantised(job)
    interpreter = Interpreter(model_path=str(path), num_threads=job["threads"])
    interpreter.allocate_tensors()
    feed = np.load(job["inputs"])
    for detail, name in zip(_inputs(interpreter), job["order"], strict=True):
        interpreter.set_tensor(detail["index"], feed[name].astype(detail["dtype"]))
    return Prepared(interpreter.invoke)


def _inputs(interpreter: Any) -> list[Any]:
    """In the order of the module's arguments: their names end in a number ("serving_default_args_1:0")."""
    return sorted(interpreter.get_input_details(), key=lambda d: d["name"])


def _converted(job: Job) -> Path:
    path = Path(job["module"]).with_suffix(".tflite")
    if not path.exists():
        import litert_torch
        import torch

        feed = np.load(job["inputs"])
        module = torch.export.load(job["module"]).module()
        example = tuple(torch.from_numpy(feed[name]) for name in job["order"])
        litert_torch.convert(module, example).export(str(path))
    return path


def _quantised(job: Job) -> Path:
    source = _converted(job)
    path = source.with_suffix(".int8.tflite")
    if not path.exists():
        from ai_edge_quantizer import quantizer, recipe

        signature = Interpreter(model_path=str(source)).get_signature_list()
        (key,) = signature
        names = signature[key]["inputs"]
        feeds = [np.load(p) for p in job["calibration"]]
        data = {key: [dict(zip(names, (f[n] for n in job["order"]), strict=True)) for f in feeds]}
        work = quantizer.Quantizer(str(source))
        work.load_quantization_recipe(recipe.static_wi8_ai8())
        work.quantize(work.calibrate(data)).export_model(str(path))
    return path


if __name__ == "__main__":
    serve(prepare)
