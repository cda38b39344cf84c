"""OpenVINO with NNCF: fp32, post-training int8, and weight-only int8 and int4 of single layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov

from bench.rivals.protocol import CannotError, Job, Prepared, serve

GROUP = 32


def prepare(job: Job) -> Prepared:
    """variant of a layer job: fp32, int8w, int4w; of a model job: fp32, int8."""
    if job["kind"] == "layers":
        model = _layers(job)
        per_weight = {"fp32": 4.0, "int8w": 1.0, "int4w": 0.5 + 2 / GROUP}
        if job["variant"] not in per_weight:
            raise CannotError(f"no variant {job['variant']}")
        if job["variant"] == "int8w":
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        if job["variant"] == "int4w":
            if job["k"] % GROUP:
                raise CannotError(f"K = {job['k']} is not a multiple of {GROUP}")
            mode = nncf.CompressWeightsMode.INT4_SYM
            model = nncf.compress_weights(model, mode=mode, group_size=GROUP, ratio=1.0, all_layers=True)
        rng = np.random.default_rng(0)
        feed = {i: rng.standard_normal((job["m"], job["k"]), dtype=np.float32) for i in range(job["layers"])}
        stored = round(job["n"] * job["k"] * per_weight[job["variant"]])
        return Prepared(_runner(model, job["threads"], feed), layers=job["layers"], stored=stored)
    if job["kind"] == "model":
        feed = dict(np.load(job["inputs"]))
        if job["variant"] == "fp32":
            return Prepared(_runner(ov.Core().read_model(job["onnx"]), job["threads"], feed))
        if job["variant"] == "int8":
            return Prepared(_runner(ov.Core().read_model(_quantised(job)), job["threads"], feed))
        raise CannotError(f"no variant {job['variant']}")
    if job["kind"] == "outputs":
        from bench.rivals.openvino_outputs import outputs

        return outputs(job)
    raise CannotError(f"no jobs of kind {job['kind']}")


def _runner(model: Any, threads: int, feed: dict[Any, Any]) -> Callable[[], object]:
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    for name, array in feed.items():
        tensor = ov.Tensor(np.ascontiguousarray(array))
        if isinstance(name, int):
            request.set_input_tensor(name, tensor)
        else:
            request.set_tensor(name, tensor)
    start, wait = request.start_async, request.wait

    def run() -> None:
        start()
        wait()

    run()
    infer = request.infer
    return lambda: infer(share_inputs=True, share_outputs=True)


def _layers(job: Job) -> Any:
    from openvino import opset13 as ops

    rng = np.random.default_rng(1)
    inputs, outputs = [], []
    for i in range(job["layers"]):
        x = ops.parameter([job["m"], job["k"]], np.float32, name=f"x{i}")
        w = ops.constant(rng.standard_normal((job["n"], job["k"]), dtype=np.float32))
        inputs.append(x)
        outputs.append(ops.matmul(x, w, transpose_a=False, transpose_b=True))
    return ov.Model(outputs, inputs, "layers")


def _quantised(job: Job) -> Path:
    source = Path(job["onnx"])
    path = source.with_suffix(f".nncf{nncf.__version__}.xml")
    if not path.exists():
        feeds = [dict(np.load(p)) for p in job["calibration"]]
        kind = nncf.ModelType.TRANSFORMER if job["transformer"] else None
        model = nncf.quantize(
            ov.Core().read_model(source), nncf.Dataset(feeds), subset_size=len(feeds), model_type=kind
        )
        ov.save_model(model, path, compress_to_fp16=False)
    return path


if __name__ == "__main__":
    serve(prepare)
