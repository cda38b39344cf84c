"""What NNCF makes of a model, for its accuracy: compressed weights of 2 to 4 bits, int8 weights and activations; run by OpenVINO."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nncf
import openvino as ov

from bench.rivals.outputs import answer, feeds
from bench.rivals.protocol import CannotError, Job, Prepared


def outputs(job: Job) -> Prepared:
    """variant: ptq, or <mode>-g<group> or <mode>-row with -tuned (AWQ, scale estimation) or -gptq; modes are NNCF's words."""
    core = ov.Core()
    model = core.read_model(job["onnx"])
    names = {name for port in model.inputs for name in port.get_names()}
    samples = [{k: v for k, v in feed.items() if k in names} for feed in feeds(job["calibration"])]
    dataset = nncf.Dataset(samples)
    if job["variant"] == "ptq":
        kind = nncf.ModelType.TRANSFORMER if job["transformer"] else None
        model = nncf.quantize(model, dataset, subset_size=len(samples), model_type=kind)
    else:
        model = _weights(model, job["variant"], dataset, len(samples))
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
        ov.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
        stored = (Path(folder) / "model.bin").stat().st_size
    # weights only: OpenVINO would round activations of compressed weights, too
    config = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()

    def run(feed: dict[str, Any]) -> list[Any]:
        found = request.infer({k: v for k, v in feed.items() if k in names})
        return [found[port] for port in request.model_outputs]

    return answer(job, run, stored)


def _weights(model: Any, variant: str, dataset: Any, count: int) -> Any:
    mode, group, *how = variant.split("-")
    try:
        words = nncf.CompressWeightsMode(mode)
    except ValueError:
        raise CannotError(f"no variant {variant}") from None
    return nncf.compress_weights(
        model,
        mode=words,
        group_size=-1 if group == "row" else int(group.removeprefix("g")),
        ratio=1.0,
        all_layers=True,
        ignored_scope=nncf.IgnoredScope(types=["Gather"], validate=False),
        dataset=dataset if how else None,
        subset_size=count,
        awq=True if how == ["tuned"] else None,
        scale_estimation=True if how == ["tuned"] else None,
        gptq=True if how == ["gptq"] else None,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    )
