"""onnxruntime: fp32, dynamic and static int8 by its own quantiser, MatMulNBits of 2, 4 and 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from bench.rivals.protocol import CannotError, Job, Prepared, serve

GROUP = 32


def prepare(job: Job) -> Prepared:
    """variant of a layer job: fp32, int8, or int<bits>[-acc<level>]; of a model job: fp32, int8-static, int8-dynamic."""
    if job["kind"] == "layers":
        with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
            path = Path(folder) / "layers.onnx"
            stored = _write_layers(path, job)
            run = _runner(path, job["threads"], None)
        return Prepared(run, layers=job["layers"], stored=stored)
    if job["kind"] == "model":
        source = Path(job["onnx"])
        files = {"fp32": lambda: source, "int8-dynamic": lambda: _dynamic(source), "int8-static": lambda: _static(job)}
        if job["variant"] not in files:
            raise CannotError(f"no variant {job['variant']}")
        return Prepared(_runner(files[job["variant"]](), job["threads"], dict(np.load(job["inputs"]))))
    raise CannotError(f"no jobs of kind {job['kind']}")


def _runner(path: Path, threads: int, feed: dict[str, Any] | None) -> Callable[[], object]:
    """Runs a file with inputs and outputs bound once, so that Python costs one call a run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    binding = session.io_binding()
    held = []
    for info in session.get_inputs():
        array = rng.standard_normal(info.shape, dtype=np.float32) if feed is None else feed[info.name]
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        held.append(value)
        binding.bind_ortvalue_input(info.name, value)
    for info in session.get_outputs():
        binding.bind_output(info.name, "cpu")

    def run(_keep: object = held) -> None:
        session.run_with_iobinding(binding)

    return run


# --- one kind of layer, several times, each with weights, input and output of its own ---


def _write_layers(path: Path, job: Job) -> int:
    """Write the model; returns the bytes of weights of one layer."""
    m, n, k, layers, variant = job["m"], job["n"], job["k"], job["layers"], job["variant"]
    rng = np.random.default_rng(1)
    nodes, constants, opset = [], [], [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    stored = 0
    data = path.with_suffix(".data")
    with data.open("wb") as sink:

        def constant(name: str, kind: int, array: np.ndarray) -> str:
            tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
            tensor.raw_data = b""
            offset = sink.tell()
            sink.write(np.ascontiguousarray(array).data)
            set_external_data(tensor, data.name, offset, array.nbytes)
            constants.append(tensor)
            nonlocal stored
            stored += array.nbytes
            return name

        for i in range(layers):
            x, y = f"x{i}", f"y{i}"
            if variant == "fp32":
                w = constant(f"w{i}", TensorProto.FLOAT, rng.standard_normal((k, n), dtype=np.float32))
                nodes.append(helper.make_node("MatMul", [x, w], [y]))
            elif variant == "int8":
                # what quantize_dynamic makes of a MatMul, on x86's faster u8 x s8 form, one scale per output
                w = constant(f"w{i}", TensorProto.INT8, rng.integers(-63, 64, (k, n), np.int8))
                s = constant(f"s{i}", TensorProto.FLOAT, rng.random(n, dtype=np.float32))
                z = constant(f"z{i}", TensorProto.INT8, np.zeros(n, np.int8))
                nodes.append(helper.make_node("DynamicQuantizeMatMul", [x, w, s, z], [y], domain="com.microsoft"))
            else:
                bits, accuracy = _bits(variant)
                groups = k // GROUP
                if k % GROUP:
                    raise CannotError(f"K = {k} is not a multiple of {GROUP}")
                packed = rng.integers(0, 256, (n, groups, GROUP * bits // 8), np.uint8)
                w = constant(f"w{i}", TensorProto.UINT8, packed)
                s = constant(f"s{i}", TensorProto.FLOAT, rng.random((n, groups), dtype=np.float32))
                attributes = {"K": k, "N": n, "bits": bits, "block_size": GROUP, "accuracy_level": accuracy}
                nodes.append(helper.make_node("MatMulNBits", [x, w, s], [y], domain="com.microsoft", **attributes))
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, (m, k)) for i in range(layers)]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, (m, n)) for i in range(layers)]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    path.write_bytes(model.SerializeToString())
    return stored // layers


def _bits(variant: str) -> tuple[int, int]:
    """(bits, accuracy level) of "int4-acc4"; level 0 lets onnxruntime choose (float32 activations)."""
    head, _, level = variant.partition("-acc")
    bits = {"int2": 2, "int4": 4, "int8w": 8}.get(head)
    if bits is None:
        raise CannotError(f"no variant {variant}")
    return bits, int(level or 0)


# --- whole models: quantised files are kept beside the original ---


def _dynamic(source: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = source.with_suffix(f".ort{onnxruntime.__version__}-dynamic.onnx")
    if not path.exists():
        quantize_dynamic(_preprocessed(source), path, weight_type=QuantType.QInt8, per_channel=True)
    return path


def _static(job: Job) -> Path:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    source = Path(job["onnx"])
    path = source.with_suffix(f".ort{onnxruntime.__version__}-static.onnx")
    if path.exists():
        return path

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([dict(np.load(p)) for p in job["calibration"]])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    quantize_static(
        _preprocessed(source), path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip
    return path


def _preprocessed(source: Path) -> Path:
    """With batch normalisation folded and shapes inferred, as onnxruntime's guide asks for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = source.with_suffix(".prepared.onnx")
    if not path.exists():
        quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    return path


if __name__ == "__main__":
    serve(prepare)
