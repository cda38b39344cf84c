"""Read ONNX: a path, bytes, a ModelProto or an onnx_ir model, every bad input told apart."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from google.protobuf.message import DecodeError

from sparsec.errors import ModelError
from sparsec.frontend.wellformed import check_graph

OLDEST_OPSET = 7
"""Opset 11 and up is tested; 7 to 10 go through onnx's version converter, older ones are refused."""

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive (a torch checkpoint or .pt2?); load it with torch and pass the module"),
    (b"\x80\x02", "a Python pickle (a torch checkpoint?); load it with torch and pass the module"),
    (b"\x89HDF", "an HDF5 file (Keras?); export it to ONNX first"),
    (b"version https://git-lfs", "a git-lfs pointer; fetch the real file with `git lfs pull`"),
)


def read_onnx(source: Any) -> ir.Model:
    """Return a new `onnx_ir.Model`; external data stays memory-mapped.

    Raises:
        ModelError: missing file, truncated or foreign content, missing external data, unusable opset, or an object
            of a kind that is not a model.
    """
    if isinstance(source, ir.Model):
        model, where = source.clone(), source.graph.name or "onnx_ir.Model"
    elif isinstance(source, onnx.ModelProto):
        own = onnx.ModelProto()
        own.CopyFrom(source)  # renaming a value renames the tensor in the proto it was read from
        model, where = _from_proto(own, "onnx.ModelProto"), "onnx.ModelProto"
    elif isinstance(source, bytes | bytearray | memoryview):
        model, where = _from_proto(_parse(bytes(source), "bytes"), "bytes"), "bytes"
    elif isinstance(source, str | PathLike):
        path = Path(source)
        model, where = _from_file(path), str(path)
    else:
        raise ModelError(
            f"cannot read a model from {type(source).__module__}.{type(source).__name__}; give a path, bytes, "
            "onnx.ModelProto, onnx_ir.Model, torch.nn.Module, torch.export.ExportedProgram or torch.fx.GraphModule."
        )
    _check_opset(model, where)
    return common.RemoveInitializersFromInputsPass()(model).model


def _from_file(path: Path) -> ir.Model:
    if not path.exists():
        raise ModelError(f"{path}: no such file.")
    if not path.is_file():
        raise ModelError(f"{path}: not a file; give the .onnx file itself.")
    model = _from_proto(_parse(path.read_bytes(), str(path)), str(path))
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    _check_external_data(model, path)
    return model


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    for magic, what in _FOREIGN:
        if data.startswith(magic):
            raise ModelError(f"{where}: not an ONNX model but {what}.")
    if data[4:8] == b"TFL3":
        raise ModelError(f"{where}: not an ONNX model but TensorFlow Lite; convert it with tf2onnx first.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{where}: {len(data)} bytes do not parse as ONNX: the file is truncated or not ONNX."
        ) from error
    return proto


def _from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    if not proto.ir_version or not proto.opset_import or (not proto.graph.node and not proto.graph.output):
        raise ModelError(f"{where}: not an ONNX model (no IR version, opset or graph): wrong file, or an empty one.")
    if not proto.graph.output:
        raise ModelError(f"{where}: the graph has no outputs: the file is truncated or not a whole model.")
    check_graph(proto.graph, where)
    try:
        return ir.from_proto(proto)
    except Exception as error:
        raise ModelError(
            f"{where}: parses as protobuf but is no valid ONNX graph: {error.__cause__ or error}"
        ) from error


def _check_external_data(model: ir.Model, path: Path) -> None:
    problems = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        need = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        have = Path(tensor.path).stat().st_size if Path(tensor.path).is_file() else None
        if have is None:
            problems.append(f"{value.name}: {tensor.path} is missing")
        elif have < need:
            problems.append(f"{value.name}: {tensor.path} has {have} bytes, {need} are needed")
    if problems:
        listing = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ModelError(f"{path}: external data cannot be read:\n  {listing}")


def _check_opset(model: ir.Model, where: str) -> None:
    opset = model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if opset is None:
        raise ModelError(f"{where}: imports no version of the standard ONNX operators.")
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"{where}: opset {opset}; sparsec reads opset {OLDEST_OPSET} to {newest} (11 and up recommended)."
        )
