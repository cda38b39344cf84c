"""Canonical graphs in the cache on disk: a warm compile neither folds nor rewrites, nor imports what does.

The key covers the graph, every weight's bytes, the sources of the passes and the versions of the libraries they stand on.
Weights that canonicalisation left as they were are not stored again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from sparsec import ops
from sparsec.cache import digest, load, source_digest, store
from sparsec.passes.stages import PassRecord, checking
from sparsec.progress import Progress

__all__ = ["canonical"]

Array = np.ndarray[Any, Any]

_STORABLE = frozenset(ir.DataType.from_numpy(np.dtype(name)) for name in "?efdbhiqBHIQ")
"""Element types that numpy's own file format knows."""

_SMALL_BYTES = 256
"""Smaller constants stay in the graph."""

_LARGEST_ENTRY = 1 << 30
"""An entry with more bytes of changed weights would push everything else out of the cache."""

_LARGEST_GRAPH = 1 << 26
"""Graphs with more bytes of weights that numpy cannot store (bfloat16, four bits) or in subgraphs are made each time."""


def canonical(
    model: ir.Model, *, debug_dump: str | Path | None = None, progress: Progress | None = None
) -> tuple[ir.Model, list[PassRecord]]:
    """The canonical form of `model`, which stays as it is, and what each stage did. Raises what `canonicalise` raises.

    Whoever wants to see the graph between stages (`debug_dump`, SPARSEC_CHECK) gets them run.
    """
    weights = _weights(model)
    if debug_dump is not None or checking() or _bytes(model) - _bytes_of(weights) > _LARGEST_GRAPH:
        return _made(model, debug_dump, progress)
    hashes = {name: digest(array) for name, array in weights.items()}
    text, _ = _graph_bytes(model, weights)
    key = digest(_makers(), text, *(part for name in sorted(hashes) for part in (name, hashes[name])))
    if (found := load("graphs", key)) is not None and (entry := _read(*found, weights)) is not None:
        return entry
    work, records = _made(model, None, progress)
    _store(key, work, records, {hash_: name for name, hash_ in hashes.items()})
    return work, records


def _made(
    model: ir.Model, debug_dump: str | Path | None, progress: Progress | None
) -> tuple[ir.Model, list[PassRecord]]:
    from sparsec.passes.canonicalise import canonicalise  # with onnxscript, a third of a second

    work = model.clone()
    return work, canonicalise(work, debug_dump=debug_dump, progress=progress)


@cache
def _makers() -> str:
    here, package = Path(__file__).parent, Path(ops.__file__).parent
    libraries = (f"{name} {version(name)}" for name in ("numpy", "onnx", "onnx-ir", "onnxscript"))
    return digest(*libraries, source_digest(*here.rglob("*.py"), *package.glob("*.py")))


def _weights(model: ir.Model) -> dict[str, Array]:
    """Every initializer of the main graph that numpy can store, small ones left out."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _SMALL_BYTES and tensor.dtype in _STORABLE:
            found[name] = tensor.numpy()
    return found


def _bytes(model: ir.Model) -> int:
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _bytes_of(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _graph_bytes(model: ir.Model, without: Mapping[str, Array]) -> tuple[bytes, list[str]]:
    """The serialised model with names in place of the data of `without`, and those names in the order of the numbers."""
    work, names = model.clone(), sorted(without)
    for graph in work.graphs():
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor) and not (graph is work.graph and name in without):
                value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=name)
    for index, name in enumerate(names):
        value = work.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            "", offset=index, length=1, dtype=tensor.dtype, shape=ir.Shape(without[name].shape), name=name
        )
    data: bytes = ir.to_proto(work).SerializeToString(deterministic=True)
    return data, names


def _store(key: str, model: ir.Model, records: list[PassRecord], originals: Mapping[str, str]) -> None:
    weights = _weights(model)
    hashes = {name: digest(array) for name, array in weights.items()}
    same = {name: originals[hash_] for name, hash_ in hashes.items() if hash_ in originals}
    changed = {name: array for name, array in weights.items() if name not in same}
    if _bytes_of(changed) > _LARGEST_ENTRY:
        return
    text, names = _graph_bytes(model, weights)
    facts = {"records": [asdict(record) for record in records], "names": names, "same": same}
    arrays = {f"weight.{index}": changed[name] for index, name in enumerate(names) if name in changed}
    store("graphs", key, facts, {"graph": np.frombuffer(text, np.uint8), **arrays})


def _read(
    facts: Mapping[str, Any], arrays: Mapping[str, Array], originals: Mapping[str, Array]
) -> tuple[ir.Model, list[PassRecord]] | None:
    """None for an entry that is damaged."""
    try:
        model = ir.from_proto(onnx.ModelProto.FromString(arrays["graph"].tobytes()))
        for index, name in enumerate(facts["names"]):
            data = originals[facts["same"][name]] if name in facts["same"] else arrays[f"weight.{index}"]
            model.graph.initializers[name].const_value = ir.Tensor(data, name=name)
        return model, [PassRecord(**{**record, "cached": True}) for record in facts["records"]]
    except (DecodeError, KeyError, TypeError):
        return None
