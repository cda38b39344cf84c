"""Products of two computed operands, in the simulator: sizes, orders of axes, batches, what stays float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.codegen.build import build_kernels
from sparsec.codegen.cuda.kernels import matmul
from sparsec.codegen.lower import lower
from sparsec.codegen.program import KernelSpec, Program
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.products import NUMPY, STEP
from tests.cuda.programs import run_gpu_program, run_kernel
from tests.kernels.nodes import node_model

Array = np.ndarray[Any, Any]


def operand(array: Array, kind: str, name: str, spare: int) -> tuple[dict[str, Any], Array, int]:
    """Parameters, memory and run of matrices [batch, rows, cols] that lie row by row or column by column, `spare` elements between."""
    laid = array if kind == "rows" else array.transpose(0, 2, 1)
    wide = np.full((*laid.shape[:2], laid.shape[2] + spare), np.nan, np.float32)
    wide[..., : laid.shape[2]] = laid
    steps = [0 if len(array) == 1 else wide[0].size]
    run = 8 if all(size % 8 == 0 for size in (laid.shape[2], wide.shape[2], *steps)) else 1
    return {"kind": kind, f"ld{name}": wide.shape[2], "steps": steps, "size": wide.size}, wide, run


def params_of(m: int, n: int, k: int, batch: int, a: dict[str, Any], b: dict[str, Any], arch: str) -> dict[str, Any]:
    return {
        "m": m, "n": n, "k": k, "batch": batch, "batch_b": 1, "batches": [batch], "a": a, "b": b,
        "c": {"ldc": n, "batch_stride": m * n, "size": batch * m * n}, "bias": False, "residual": False, "act": "", "act_params": [],
        **matmul.cut(m, n, k, a["kind"], arch, batch), "parts": 1,
    }  # fmt: skip


def check(
    size: tuple[int, int, int], kinds: str, rng: np.random.Generator, *, batch: int = 1, shared: str = "", spare: int = 0,
    target: str = "cuda", types: tuple[str, ...] = (),
) -> None:  # fmt: skip
    (m, n, k), machine = size, resolve_target(target)
    half = machine.storage
    words = {"r": "rows", "c": "cols"}
    a = rng.normal(size=(1 if shared == "a" else batch, m, k)).astype(NUMPY[half]).astype(np.float32)
    b = rng.normal(size=(1 if shared == "b" else batch, k, n)).astype(NUMPY[half]).astype(np.float32)
    (pa, laid_a, run_a), (pb, laid_b, run_b) = (
        operand(a, words[kinds[0]], "a", spare),
        operand(b, words[kinds[1]], "b", spare),
    )
    bias, residual = rng.normal(size=n).astype(np.float32), rng.normal(size=(batch, m, n)).astype(np.float32)
    params = params_of(m, n, k, batch, pa, pb, machine.gpu) | {
        "vectors": [run_a, run_b],
        "bias": True,
        "residual": True,
    }
    kept = types or (half, half)
    storage = (*kept, "float32", "float32", half)
    (found,) = run_kernel(KernelSpec("cuda.matmul", params, storage), [laid_a, laid_b, bias, residual], storage, target)
    wanted = a.astype(np.float64) @ b.astype(np.float64) + bias + residual
    # operands are exact, sums float32, the result is rounded once
    assert (
        np.abs(found.astype(np.float64).reshape(wanted.shape) - wanted).max()
        <= STEP[half] * np.abs(wanted).max() + 1e-4
    )


@pytest.mark.parametrize("kinds", ["rr", "rc", "cr", "cc"])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 37, 64), (70, 1, 33), (17, 61, 129), (130, 72, 72)], ids=str)
def test_sizes_and_orders(size: tuple[int, int, int], kinds: str, rng: np.random.Generator) -> None:
    check(size, kinds, rng)


@pytest.mark.parametrize("kinds", ["rr", "cc"])
@pytest.mark.parametrize("shared", ["", "a", "b"])
def test_batches(kinds: str, shared: str, rng: np.random.Generator) -> None:
    check((9, 24, 40), kinds, rng, batch=3, shared=shared, spare=8)
    check((5, 7, 70), kinds, rng, batch=2, shared=shared, spare=3)


@pytest.mark.parametrize("kinds", ["rr", "cc"])
def test_other_types(kinds: str, rng: np.random.Generator) -> None:
    check((19, 40, 72), kinds, rng, target="cuda:sm_80:bf16")
    check((19, 40, 72), kinds, rng, types=("float32", "float16"))


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')


def lowered(model: ir.Model, feed: dict[str, Array], product: Callable[..., Array]) -> Program:
    """The program of a model that computes what `product` does with the inputs; what it found is near that."""
    program = lower(model, resolve_target("cuda"), "test")
    (found,) = run_gpu_program(program, feed).values()
    exact = {name: array.astype(np.float64) for name, array in feed.items()}
    wanted, spread = product(**exact), np.sqrt(product(**{name: array**2 for name, array in exact.items()}))
    assert found.shape == wanted.shape
    # one rounding of every factor, each on its own; one of the result
    assert (np.abs(found - wanted) <= STEP["float16"] * (6 * spread + np.abs(wanted))).all()
    return program


def families(program: Program) -> list[str]:
    return [step.spec.family for step in program.steps]


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 5, 17), (3, 17, 4)), ((2, 1, 5, 24), (3, 24, 8)), ((5, 9), (2, 9, 11)), ((13,), (13, 3)), ((2, 3, 13), (13,)),
        ((3, 2, 4, 16), (3, 1, 16, 6)), ((4, 8), (8, 16)), ((2, 1, 1, 8), (1, 3, 8, 1)), ((19,), (19,)),
    ],
)  # fmt: skip
def test_shapes_of_numpy(shapes: tuple[tuple[int, ...], tuple[int, ...]], rng: np.random.Generator) -> None:
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip("ab", shapes, strict=True)}
    assert families(lowered(node_model("MatMul", feed), feed, lambda a, b: a @ b)) == ["cuda.matmul"]


def test_one_matrix_for_all_batches_is_one_product(rng: np.random.Generator) -> None:
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("a", (2, 3, 5, 16)), ("b", (16, 9)))}
    program = lowered(node_model("MatMul", feed), feed, lambda a, b: a @ b)
    assert (program.steps[0].spec.params["m"], program.steps[0].spec.params["batches"]) == (30, [])


@pytest.mark.parametrize("shapes", [((2, 9, 1100), (2, 1100, 13)), ((3, 1030), (1030, 40))])
def test_inputs_in_parts(shapes: tuple[tuple[int, ...], tuple[int, ...]], rng: np.random.Generator) -> None:
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip("ab", shapes, strict=True)}
    assert families(lowered(node_model("MatMul", feed), feed, lambda a, b: a @ b)) == ["cuda.matmul", "cuda.join"]


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("addend", [(), (11,), (1, 11), (6, 11)])
def test_gemm(trans_a: int, trans_b: int, addend: tuple[int, ...], rng: np.random.Generator) -> None:
    shapes = {"a": (24, 6) if trans_a else (6, 24), "b": (11, 24) if trans_b else (24, 11)}
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if addend:
        feed["c"] = rng.normal(size=addend).astype(np.float32)

    def product(a: Array, b: Array, c: Array | float = 0) -> Array:
        return (a.T if trans_a else a) @ (b.T if trans_b else b) + c

    model = node_model("Gemm", feed, transA=trans_a, transB=trans_b)
    assert families(lowered(model, feed, product)) == ["cuda.matmul"]


@pytest.mark.parametrize(("perm", "last"), [("0, 2, 3, 1", "[5, 7, 2, 16]"), ("0, 2, 1, 3", "[5, 16, 2, 7]")])
def test_transpositions_are_read_in_place(perm: str, last: str, rng: np.random.Generator) -> None:
    """Heads side by side, for the second product with keys or values."""
    shape = [int(v) for v in last.strip("[]").split(",")]
    axes = [int(v) for v in perm.split(",")]
    model = graph(f"""g (float[5, 2, 9, 16] q, float{last} k) => (float[5, 2, 9, 7] y) {{
        t = Transpose <perm = [{perm}]> (k)
        y = MatMul (q, t)
    }}""")
    feed = {"q": rng.normal(size=(5, 2, 9, 16)).astype(np.float32), "k": rng.normal(size=shape).astype(np.float32)}
    for node in model.graph:
        value = node.outputs[0]
        value.dtype = ir.DataType.FLOAT
        value.shape = ir.Shape((5, 2, 9, 7) if value.name == "y" else [shape[a] for a in axes])
    assert families(lowered(model, feed, lambda q, k: q @ k.transpose(axes))) == ["cuda.matmul"]


def test_products_with_a_view_of_themselves(rng: np.random.Generator) -> None:
    """x^T x: both operands dense along the results."""
    model = graph("""g (float[3, 20, 9] x) => (float[3, 9, 9] y) {
        t = Transpose <perm = [0, 2, 1]> (x)
        y = MatMul (t, x)
    }""")
    feed = {"x": rng.normal(size=(3, 20, 9)).astype(np.float32)}
    for node, shape in zip(model.graph, ((3, 9, 20), (3, 9, 9)), strict=True):
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(shape), ir.DataType.FLOAT
    program = lowered(model, feed, lambda x: x.transpose(0, 2, 1) @ x)
    assert families(program) == ["cuda.matmul"]
    assert [program.steps[0].spec.params[name]["kind"] for name in "ab"] == ["cols", "rows"]


@pytest.mark.parametrize("inputs", [1, 16, 1030])
def test_angles_stay_float32(inputs: int, rng: np.random.Generator) -> None:
    """Positions times frequencies: halves would leave noise."""
    model = graph(f"""g (float[2, 12, {inputs}] f, float[2, {inputs}, 30] p) => (float[2, 12, 30] y) {{
        angle = MatMul (f, p)
        y = Cos (angle)
    }}""")
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape((2, 12, 30)), ir.DataType.FLOAT
    feed = {
        "f": rng.random((2, 12, inputs)).astype(np.float32),
        "p": (100 / inputs * rng.random((2, inputs, 30))).astype(np.float32),
    }
    program = lower(model, resolve_target("cuda"), "test")
    assert families(program)[0] == "cuda.product"
    (found,) = run_gpu_program(program, feed).values()
    np.testing.assert_allclose(found, np.cos(feed["f"].astype(np.float64) @ feed["p"]), rtol=0, atol=2e-3)


def test_constants_beyond_halves_stay_float32(rng: np.random.Generator) -> None:
    feed = {"a": rng.normal(size=(4, 16)).astype(np.float32)}
    constant = {"b": (1e5 * rng.random((3, 16, 5))).astype(np.float32)}
    model = node_model("MatMul", feed | constant, ("b",))
    program = lower(model, resolve_target("cuda"), "test")
    assert families(program) == ["cuda.product"]
    (found,) = run_gpu_program(program, feed).values()
    np.testing.assert_allclose(found, feed["a"].astype(np.float64) @ constant["b"], rtol=1e-4, atol=1.0)


def test_operands_that_halves_cannot_hold_stay_float32(rng: np.random.Generator) -> None:
    model = graph("""g (float[2, 5, 16] x, float[2, 16, 9] w) => (float[2, 5, 9] y) <float large = {100000.0}> {
        a = Mul (x, large)
        y = MatMul (a, w)
    }""")
    for node, shape in zip(model.graph, ((2, 5, 16), (2, 5, 9)), strict=True):
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(shape), ir.DataType.FLOAT
    feed = {"x": rng.normal(size=(2, 5, 16)).astype(np.float32), "w": rng.normal(size=(2, 16, 9)).astype(np.float32)}
    program = lower(model, resolve_target("cuda"), "test")
    assert families(program)[-1] == "cuda.product"
    (found,) = run_gpu_program(program, feed).values()
    np.testing.assert_allclose(found, 1e5 * feed["x"].astype(np.float64) @ feed["w"], rtol=1e-4, atol=1.0)
    assert families(lower(model, resolve_target("cuda:bf16"), "test"))[-1] == "cuda.matmul"


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kinds", ["rr", "rc", "cr", "cc"])
def test_they_compile_without_spills(kinds: str, arch: str) -> None:
    words = {"r": "rows", "c": "cols"}
    m, n, k = 512, 256, 128
    a = {"kind": words[kinds[0]], "lda": k if kinds[0] == "r" else m, "steps": [m * k], "size": 4 * m * k}
    b = {"kind": words[kinds[1]], "ldb": n if kinds[1] == "r" else k, "steps": [k * n], "size": 4 * k * n}
    specs = []
    for size in (m, 1):
        shape = a if size == m else {**a, "lda": k, "kind": "rows"}
        params = params_of(size, n, k, 4, shape, b, arch) | {"vectors": [8, 8]}
        specs.append(KernelSpec("cuda.matmul", params, ("float16",) * 3))
    built = build_kernels(specs, resolve_target(f"cuda:{arch}"))
    assert [built[spec.canonical()].meta["spills"] for spec in specs] == [0, 0]
