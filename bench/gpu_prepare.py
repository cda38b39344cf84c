"""`bench gpu --prepare`: kernels, weights and wanted results of all that is timed, in one file that needs no compiler where it is run.

Weights are random codes whose rows repeat (`_PERIOD`), so that hundreds of megabytes of them compress to a few; on the GPU every
copy is memory of its own, so that the time is that of any other values.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from bench import gpu_minilm
from bench.blobs import BlobWriter
from bench.gpu_bars import JOBS, MODEL_JOBS, Job, ModelJob
from bench.gpu_models import put_model
from bench.gpu_products import product, random_weight, repeated
from bench.gpu_roofs import read_roofs
from sparsec.errors import SparsecError
from sparsec.formats import Scheme
from sparsec.formats.encoded import EncodedWeight, decode
from sparsec.target import Target, resolve_target

_COLD_BYTES = 512 << 20
"""What copies of a weight are together: several times the level-2 cache of any GPU."""
_PERIOD, _SPARSE_PERIOD = 64, 512
"""Most outputs after which a weight's rows repeat: of sparse ones many panels, since they are uneven."""
_INPUT_ROWS = 16


def prepare(path: Path, arch: str, only: Sequence[str] = ()) -> None:
    """Write the archive for an architecture ("sm_90"); `only` names products and models, by default all."""
    target = resolve_target(f"cuda:{arch}")
    blobs = BlobWriter()
    wanted = [job for job in (*JOBS, *MODEL_JOBS) if not only or str(job) in only]
    pairs = [(job, scheme) for job in wanted for scheme in job.schemes]
    products = [put_product(job, scheme, target, blobs) for job, scheme in pairs if isinstance(job, Job)]
    models = [e for job, scheme in pairs if isinstance(job, ModelJob) for e in _model(job, scheme, target, blobs)]
    index = {
        "arch": arch,
        "cold_bytes": _COLD_BYTES,
        "roofs": read_roofs(arch, blobs),
        "products": products,
        "models": models,
    }
    size = blobs.save(path, index)
    print(f"{path}: {len(products)} products, {len(models)} models, {size / 1e6:.1f} MB")


def put_product(job: Job, scheme: str, target: Target, blobs: BlobWriter) -> dict[str, Any]:
    """An entry of the archive; {"refused": why} where sparsec has no kernel.

    inputs: fp16 [rows, K], which repeat; wanted: float32 [rows, outputs], which repeat along both axes.
    """
    entry: dict[str, Any] = {"job": str(job), "scheme": scheme, "m": job.m, "n": job.n, "k": job.k}
    rng = np.random.default_rng(0)
    period = gcd(job.n, _PERIOD if Scheme.parse(scheme).is_dense else _SPARSE_PERIOD)
    part = random_weight(scheme, period, job.k, rng)
    inputs = rng.standard_normal((min(job.m, _INPUT_ROWS), job.k)).astype(np.float16)
    values = decode(part) if isinstance(part, EncodedWeight) else part
    try:
        made = product(repeated(part, job.n // period), job.m, target)
    except (SparsecError, ValueError) as error:
        return entry | {"refused": str(error).splitlines()[0][:80]}
    return entry | {
        "stored_bytes": made.stored_bytes,
        "inputs": blobs.put_array(inputs),
        "wanted": blobs.put_array(inputs.astype(np.float32) @ values.T),
        "a": made.a,
        "c": made.c,
        "sizes": dict(made.sizes),
        "weights": {name: blobs.put_array(array) for name, array in made.weights.items()},
        "calls": [
            {
                "image": blobs.put(call.image.cubin, "images"),
                "symbol": call.symbol,
                "grid": call.launch.grid,
                "block": call.launch.block,
                "shared_bytes": call.launch.shared_bytes,
                "buffers": call.buffers,
            }
            for call in made.calls
        ],
    }


def _model(job: ModelJob, scheme: str, target: Target, blobs: BlobWriter) -> list[dict[str, Any]]:
    """MiniLM with the weights of gpu_minilm.py; nothing, with a line that says why, where torch is missing."""
    try:
        import torch
    except ModuleNotFoundError:
        print(f"left out {job}: exporting it needs torch")
        return []
    from bench.zoo.base import export, from_module
    from examples.minilm_model import MiniLM
    from sparsec.codegen.cuda.storage import stored_halves
    from sparsec.codegen.lower import lower
    from sparsec.frontend import load_model
    from sparsec.passes import compress
    from sparsec.recipe import load_recipe
    from sparsec.reference import CachedReference
    from sparsec.verify import COMPRESSED_BOUND, half_bound

    module = MiniLM(gpu_minilm.CONFIG)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in gpu_minilm.weights().items()})
    feed = gpu_minilm.inputs(job.batch, job.tokens)
    name = f"bench_minilm_{job.batch}x{job.tokens}"
    zoo = from_module(name, module, {key: torch.from_numpy(array) for key, array in feed.items()})
    source = load_model(export(zoo), None, zoo.input_shapes, {})
    portable = compress(source, load_recipe(None if scheme == "fp16" else scheme)).model
    program = lower(portable, target, name)
    bound = max(COMPRESSED_BOUND, half_bound(target.storage, stored_halves(program)))
    wanted = CachedReference(portable).run(feed)
    entry, compiled = put_model(f"{job} {scheme}", program, feed, wanted, bound, blobs)
    more = {"job": str(job), "scheme": scheme, "batch": job.batch, "tokens": job.tokens}
    return [entry | more | {"stored_bytes": int(compiled.blob.nbytes)}]
