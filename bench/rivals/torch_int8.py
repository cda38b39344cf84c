"""torch: dynamic int8 linear layers (the x86 engine), and fp32."""

from __future__ import annotations

import warnings
from itertools import starmap

import torch

from bench.rivals.protocol import CannotError, Job, Prepared, serve


def prepare(job: Job) -> Prepared:
    """variant of a layer job: fp32, int8."""
    if job["kind"] != "layers":
        raise CannotError(f"no jobs of kind {job['kind']}")
    if job["variant"] not in ("fp32", "int8"):
        raise CannotError(f"no variant {job['variant']}")
    warnings.simplefilter("ignore")  # the quantised modules are announced as deprecated
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    torch.backends.quantized.engine = "x86"
    layers = []
    for _ in range(job["layers"]):
        layer: torch.nn.Module = torch.nn.Linear(job["k"], job["n"], bias=False)
        if job["variant"] == "int8":
            layer = torch.ao.quantization.quantize_dynamic(
                torch.nn.Sequential(layer), {torch.nn.Linear}, dtype=torch.qint8
            )
        layers.append((layer, torch.randn(job["m"], job["k"])))

    def run() -> None:
        for _ in starmap(torch.nn.Module.__call__, layers):
            pass

    stored = job["n"] * job["k"] * (1 if job["variant"] == "int8" else 4)
    return Prepared(run, layers=job["layers"], stored=stored)


if __name__ == "__main__":
    serve(prepare)
