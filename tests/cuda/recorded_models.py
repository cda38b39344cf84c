"""Whole models for `python -m tests.cuda.record`: library and weights of a bundle, inputs, and what onnxruntime makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.blobs import BlobWriter
from bench.gpu_models import put_model
from bench.zoo import ZooModel, get
from sparsec.codegen.cuda.storage import stored_halves
from sparsec.codegen.lower import lower
from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.reference import CachedReference
from sparsec.target import resolve_target
from sparsec.verify import COMPRESSED_BOUND, half_bound

_DIGITS = Path(__file__).parents[1] / "models" / "digits.onnx"
MODELS: tuple[tuple[str, str | None], ...] = (
    ("digits", None),
    ("digits", "cb4"),
    ("resnet8", "s16x1@50-cb4-g32"),
    ("resnet8", "s2:4"),
    ("resnet20", None),
    ("stories_decode", None),
    ("stories_prefill", None),
    ("mobilenet_v1", None),
    ("mobilenet_v2", "cb4"),  # codes keep the file small
    ("resnet50_random", "cb2"),
    ("minilm", "cb4-g128"),
)
"""Models of the zoo, and recipes; `digits` is that of tests/models."""


def record_model(name: str, recipe: str | None, arch: str, blobs: BlobWriter) -> dict[str, Any]:
    """An entry of the archive. Raises MissingData or ModuleNotFoundError where the model cannot be had."""
    zoo = ZooModel("digits", _DIGITS, input_shapes={"x": (2, 1, 8, 8)}) if name == "digits" else get(name)
    source = load_model(zoo.onnx_file(), None, zoo.input_shapes, zoo.input_values)
    portable = compress(source, load_recipe(recipe)).model
    program = lower(portable, resolve_target(f"cuda:{arch}"), name)
    feed = {info.name: zoo.random_inputs(1)[info.name] for info in program.inputs}
    reference = CachedReference(zoo.onnx_file() if recipe is None else portable, fixed=zoo.input_values)
    bound = max(COMPRESSED_BOUND, half_bound(program.target.storage, stored_halves(program)))
    return put_model(f"model {name} {recipe or 'fp32'}", program, feed, reference.run(feed), bound, blobs)[0]
