"""onnxruntime's quantisers, for their accuracy: MatMulNBits of 2 and 4 bits by each of its algorithms, QDQ and dynamic int8.

Runs in this project's environment, where torch and onnx-ir are, which some of the algorithms ask for.
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime import quantization as quant

from bench.rivals.outputs import answer, feeds
from bench.rivals.protocol import CannotError, Job, Prepared, serve

_WEIGHTS = re.compile(r"(rtn|kquant|hqq|gptq)(\d)(_asym)?-g(\d+)")
_METHODS = {
    "static": quant.CalibrationMethod.MinMax,
    "static-percentile": quant.CalibrationMethod.Percentile,
    "static-entropy": quant.CalibrationMethod.Entropy,
    "static4": quant.CalibrationMethod.MinMax,
}
# Histograms keep every activation of every sample in memory: 256 images of MobileNet take 14 GB.
_KEPT = 32


class _Reader(quant.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, path: str, names: set[str], most: int | None = None) -> None:
        self.path, self.names, self.most = path, names, most
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)

    def rewind(self) -> None:
        self.feeds = iter(self)

    def __iter__(self) -> Any:
        return ({k: v for k, v in feed.items() if k in self.names} for feed in islice(feeds(self.path), self.most))

    def __deepcopy__(self, memo: Any) -> _Reader:
        return _Reader(self.path, self.names, self.most)


def prepare(job: Job) -> Prepared:
    """variant: <algorithm><bits>[_asym]-g<group> for weights of MatMul; static[-percentile|-entropy], static4, dynamic."""
    if job["kind"] != "outputs":
        raise CannotError(f"no jobs of kind {job['kind']}")
    _leave_memory()
    with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
        path = Path(folder) / "quantised.onnx"
        _quantise(job, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}
        stored = sum(file.stat().st_size for file in Path(folder).iterdir() if file.name.startswith("quantised"))
        return answer(job, lambda feed: session.run(None, {k: v for k, v in feed.items() if k in names}), stored)


def _leave_memory() -> None:
    """Fail where three quarters of this machine's memory do not do (GPTQ keeps all activations), before everything else here does."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _quantise(job: Job, path: Path) -> None:
    variant, source = job["variant"], job["onnx"]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    most = _KEPT if variant in ("static-percentile", "static-entropy") else None
    reader = _Reader(job["calibration"], {i.name for i in ort.InferenceSession(source, options).get_inputs()}, most)
    if match := _WEIGHTS.fullmatch(variant):
        _weights(match, source, path, reader)
        return
    if variant != "dynamic" and variant not in _METHODS:
        raise CannotError(f"no variant {variant}")
    prepared = path.with_name("prepared.onnx")
    quant.shape_inference.quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
    if variant == "dynamic":
        quant.quantize_dynamic(prepared, path, weight_type=quant.QuantType.QInt8, per_channel=True)
        return
    four = variant == "static4"
    quant.quantize_static(
        prepared, path, reader, quant_format=quant.QuantFormat.QDQ, per_channel=True,
        activation_type=quant.QuantType.QUInt16 if four else quant.QuantType.QUInt8,
        weight_type=quant.QuantType.QInt4 if four else quant.QuantType.QInt8, calibrate_method=_METHODS[variant],
    )  # fmt: skip


def _weights(match: re.Match[str], source: str, path: Path, reader: _Reader) -> None:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    algorithm, bits, group, symmetric = match[1], int(match[2]), int(match[4]), match[3] is None
    model = onnx.load(source)
    config = None
    if algorithm == "hqq":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=group, bits=bits)
    elif algorithm == "kquant":
        config = nbits.KQuantWeightOnlyQuantConfig()
    elif algorithm == "gptq":
        config = nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=reader, actorder=True)
    quantiser = nbits.MatMulNBitsQuantizer(
        model, bits=bits, block_size=group, is_symmetric=symmetric, accuracy_level=1, algo_config=config
    )
    quantiser.process()
    quantiser.model.save_model_to_file(str(path), use_external_data_format=False)


if __name__ == "__main__":
    serve(prepare)
