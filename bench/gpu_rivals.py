"""Rivals of `bench gpu`, all from Python packages on top of torch: each makes one call on weights of its own.

A rival is `make(m, n, k, copies) -> (bytes of a weight, call(copy))`. What is missing raises ImportError, what the rival cannot do any
other error: its row says so. Calls are captured in a CUDA graph; what cannot be is timed without one, and its row says that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bench import gpu_minilm
from bench.blobs import BlobReader
from bench.gpu_bars import COMPILED, EAGER, FP16, NO_GRAPH, WRONG, Row
from bench.gpu_models import error_of, wall_seconds

Made = tuple[int, Callable[[int], Any]]

_REPLAYS = 30


def why_not() -> str:
    """Why no rival can be timed here, "" if they can."""
    try:
        import torch
    except ImportError:
        return "not installed: torch"
    return "" if torch.cuda.is_available() else "torch finds no GPU"


# --- products ---


def dense(m: int, n: int, k: int, copies: int) -> Made:
    """torch.matmul in fp16: cuBLAS."""
    import torch

    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies)]
    return weights[0].nbytes, lambda i: a @ weights[i].T


def int4(m: int, n: int, k: int, copies: int) -> Made:
    """torch's weight-only int4 product, groups of 128, bfloat16 (it has no fp16)."""
    import torch

    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    codes = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
    weights = [torch.ops.aten._convert_weight_to_int4pack(codes, 8) for _ in range(copies)]
    scales = torch.rand(k // 128, n, 2, device="cuda", dtype=torch.bfloat16)
    return weights[0].nbytes + scales.nbytes, lambda i: torch.ops.aten._weight_int4pack_mm(a, weights[i], 128, scales)


def _two_of_four(m: int, n: int, k: int) -> tuple[Any, Any]:
    """Rows in eights, which 2:4 products take, and a pruned weight, both fp16."""
    import torch

    pattern = torch.tensor([1, 0, 0, 1], device="cuda", dtype=torch.float16).repeat(n, k // 4)
    a = torch.randn(-(-m // 8) * 8, k, device="cuda", dtype=torch.float16)
    return a, torch.randn(n, k, device="cuda", dtype=torch.float16) * pattern


def cusparselt(m: int, n: int, k: int, copies: int) -> Made:
    """2:4 in fp16 by cuSPARSELt, with the algorithm that its own search finds best."""
    import torch

    a, weight = _two_of_four(m, n, k)
    weights = [torch._cslt_compress(weight) for _ in range(copies)]
    best = 0
    with suppress(AttributeError, RuntimeError):
        best = int(torch._cslt_sparse_mm_search(weights[0], a.T))
    return n * k * 9 // 8, lambda i: torch._cslt_sparse_mm(weights[i], a.T, alg_id=best)


def cutlass(m: int, n: int, k: int, copies: int) -> Made:
    """2:4 in fp16 by torch's CUTLASS kernels."""
    import torch
    from torch.sparse import SparseSemiStructuredTensorCUTLASS

    a, weight = _two_of_four(m, n, k)
    weights = [SparseSemiStructuredTensorCUTLASS.from_dense(weight) for _ in range(copies)]
    return n * k * 9 // 8, lambda i: torch.nn.functional.linear(a, weights[i])


def nf4(m: int, n: int, k: int, copies: int) -> Made:
    """bitsandbytes NF4, groups of 64."""
    import bitsandbytes.functional as bnb
    import torch
    from bitsandbytes import matmul_4bit

    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    made = [bnb.quantize_nf4(torch.randn(n, k, device="cuda", dtype=torch.float16)) for _ in range(copies)]
    size = made[0][0].nbytes + made[0][1].absmax.nbytes
    return size, lambda i: matmul_4bit(a, made[i][0].t(), quant_state=made[i][1])


def triton(m: int, n: int, k: int, copies: int) -> Made:
    """A plain Triton product that unpacks int4, groups of 128, in front of tl.dot."""
    import torch

    from bench.gpu_triton import int4_product

    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randint(-128, 127, (k // 2, n), device="cuda", dtype=torch.int8) for _ in range(copies)]
    scales = torch.rand(k // 128, n, device="cuda", dtype=torch.float16)
    return weights[0].nbytes + scales.nbytes, lambda i: int4_product(a, weights[i], scales)


RIVALS: dict[str, Callable[[int, int, int, int], Made]] = {
    FP16: dense,
    "torch int4": int4,
    "torch 2:4 cuSPARSELt": cusparselt,
    "torch 2:4 CUTLASS": cutlass,
    "bitsandbytes nf4": nf4,
    "triton int4": triton,
}


def copies_of(nbytes: int, cold_bytes: int) -> int:
    """How many copies of a weight go round, at least two: together `cold_bytes`, but no more than 64."""
    return max(2, min(64, -(-cold_bytes // max(1, nbytes))))


def of_product(archive: BlobReader, entry: Mapping[str, Any]) -> list[tuple[str, Callable[[], Row]]]:
    """Every rival on the product of an entry of the archive: its name, and what times it."""
    cold = archive.index["cold_bytes"]
    return [(name, partial(_product_row, name, make, entry, cold)) for name, make in RIVALS.items()]


def _product_row(name: str, make: Callable[[int, int, int, int], Made], entry: Mapping[str, Any], cold: int) -> Row:
    m, n, k = (entry[key] for key in ("m", "n", "k"))
    size = make(m, n, k, 1)[0]
    copies = copies_of(size, cold)
    seconds, note = gpu_seconds(make(m, n, k, copies)[1], copies)
    return Row(entry["job"], name, seconds, size, size + 2 * m * (n + k), 2 * m * n * k, note)


def row(job: str, name: str, timed: Callable[[], Row], why_no_torch: str) -> Row:
    """The rival's row: what `timed` gives, or the reason why it gives nothing."""
    if why_no_torch:
        return Row(job, name, None, note=why_no_torch)
    import torch

    try:
        return timed()
    except ImportError as missing:
        return Row(job, name, None, note=f"not installed: {missing.name}")
    except Exception as error:  # of whatever kind the package chose: the other rows are still wanted
        return Row(job, name, None, note=_told(error))
    finally:
        with suppress(RuntimeError):  # ours takes its memory from the driver
            torch.cuda.empty_cache()


def _told(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]


def gpu_seconds(call: Callable[[int], Any], copies: int) -> tuple[float, str]:
    """Median seconds of a call, and a note where it could not be captured in a CUDA graph with all copies in turn."""
    import torch

    def once() -> None:
        for i in range(copies):
            call(i)

    run, note = captured(once)
    times = []
    for _ in range(_REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / copies)
    return median(times), note


def captured(once: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
    """A replay of the CUDA graph of a call; the call itself and a note where it cannot be captured."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            once()
    except Exception as error:
        torch.cuda.synchronize()
        once()
        return once, f"{NO_GRAPH} ({_told(error)})"
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, ""


def matmul_roof() -> float:
    """Operations a second of torch.matmul on large squares in fp16."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    return 2 * 8192**3 / gpu_seconds(lambda _: a @ b, 1)[0]


# --- models ---


def of_model(archive: BlobReader, entry: Mapping[str, Any]) -> list[tuple[str, Callable[[], Row]]]:
    """MiniLM by torch, compiled and not, on the inputs of an entry of the archive: its name, and what times it."""
    return [
        (name, partial(_model_row, archive, entry, name, compiled))
        for name, compiled in ((EAGER, False), (COMPILED, True))
    ]


def _model_row(archive: BlobReader, entry: Mapping[str, Any], name: str, compiled: bool) -> Row:
    import torch

    model = gpu_minilm.encoder().cuda()
    feed = [torch.from_numpy(array).cuda() for array in gpu_minilm.inputs(entry["batch"], entry["tokens"]).values()]
    with torch.no_grad():
        forward = torch.compile(model) if compiled else model
        (output,) = entry["outputs"]
        error = error_of(archive, entry, {output: np.asarray(forward(*feed).float().cpu())})
        run, note = captured(lambda: forward(*feed))

        def waited() -> None:
            run()
            torch.cuda.synchronize()

        seconds = wall_seconds(waited)
    wrong = "" if error <= 2 * entry["bound"] else f"{WRONG}: off by {error:.2g}"
    return Row(
        entry["job"],
        name,
        seconds,
        sum(p.nbytes for p in model.parameters()),
        note="; ".join(filter(None, (wrong, note))),
    )
