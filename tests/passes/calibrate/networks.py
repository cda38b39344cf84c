"""Small networks to calibrate: convolutions with groups, shared activations, layers without bias, text form of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from sparsec.formats import Scheme
from sparsec.passes.select import Choice
from sparsec.passes.weights import Weight, find_weights
from sparsec.recipe import Rule
from sparsec.reference import Reference

Array = np.ndarray[Any, Any]


def image_network(seed: int = 0) -> ir.Model:
    """x [1, 6, 9, 7] -> grouped 3x3 convolution (stride 2, pads, dilation), 1x1 without bias, residual, Gemm."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, 6, 9, 7] x) => (float[1, 5] y)
        {
            a = Conv <group = 3, kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 2, 1], dilations = [2, 1]> (x, w1, b1)
            r = Relu (a)
            c = Conv (r, w2)
            d = Add (c, r)
            f = Flatten (d)
            y = Gemm <transB = 1> (f, w3, b3)
        }"""
    )
    shape = (9, 2, 3, 2)
    tensors = {
        "w1": rng.standard_normal(shape),
        "b1": rng.standard_normal(9),
        "w2": rng.standard_normal((9, 9, 1, 1)) / 3,
        "w3": rng.standard_normal((5, 9 * 4 * 7)) / 16,
        "b3": rng.standard_normal(5),
    }
    return with_tensors(model, tensors)


def pixels_network(rng: np.random.Generator) -> ir.Model:
    """x [1, 3, 32, 32] -> two 3x3 convolutions with 16 outputs, Relu between them: sums over many pixels."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, 3, 32, 32] x) => (float[1, 16, 32, 32] y)
        {
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
            r = Relu (a)
            y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w1)
        }"""
    )
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3)}
    return with_tensors(model, {name: rng.standard_normal(shape) / 5 for name, shape in shapes.items()})


def text_network(seed: int = 0, width: int = 12) -> ir.Model:
    """x [1, 8, width] -> three products of one input (one with a bias, one shared constant), their sum through tanh, a product."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, 8, {width}] x) => (float[1, 8, 7] y)
        {{
            q = MatMul (x, wq)
            qb = Add (q, bq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            vb = Add (bq, v)
            s = Add (qb, k)
            t = Add (s, vb)
            u = Tanh (t)
            y = MatMul (u, wo)
        }}"""
    )
    tensors = {name: rng.standard_normal((width, width)) / width**0.5 for name in ("wq", "wk", "wv")}
    tensors |= {"bq": rng.standard_normal(width), "wo": rng.standard_normal((width, 7))}
    return with_tensors(model, tensors)


def chain(*weights: Array, tokens: int = 8) -> ir.Model:
    """x [1, tokens, K] -> products with each W [N, K] (stored [K, N], named w0, w1 ..), Relu between them."""
    lines, last = [], "x"
    for number in range(len(weights)):
        made = "y" if number == len(weights) - 1 else f"h{number}"
        lines.append(f"{made} = MatMul ({last}, w{number})")
        if made != "y":
            lines.append(f"r{number} = Relu ({made})")
            last = f"r{number}"
    shapes = weights[0].shape[1], weights[-1].shape[0]
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, {tokens}, {shapes[0]}] x) => (float[1, {tokens}, {shapes[1]}] y) {{ {chr(10).join(lines)} }}"""
    )
    return with_tensors(model, {f"w{number}": weight.T for number, weight in enumerate(weights)})


def distance(model: Any, original: Any, feeds: Sequence[dict[str, Array]]) -> float:
    """Relative squared error of the outputs in onnxruntime, their mean over the samples included."""
    ours, theirs = Reference(model), Reference(original)
    pairs = [(next(iter(ours.run(f).values())), next(iter(theirs.run(f).values()))) for f in feeds]
    return float(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(b).sum() for _, b in pairs))


def with_tensors(model: onnx.ModelProto, tensors: dict[str, Array]) -> ir.Model:
    """The model with these initializers, float32 or int64; nodes get names, values shapes."""
    for name, array in tensors.items():
        array = array if array.dtype == np.int64 else array.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    result = ir.from_proto(inferred)
    for number, node in enumerate(result.graph):
        node.name = f"{node.op_type}{number}"
    return result


def choices(model: ir.Model, scheme: str, **rule: Any) -> list[Choice]:
    """Every weight of the model in one scheme."""
    made = Rule(scheme=scheme, **rule)
    return [
        Choice(weight, Scheme.parse(scheme), made, 0) for weight in find_weights(model) if isinstance(weight, Weight)
    ]


def samples(model: ir.Model, count: int, seed: int = 1) -> list[dict[str, Array]]:
    """Correlated inputs with a mean; integers from 0 to 10."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        feed = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            shape = tuple(int(size) for size in value.shape.numpy())
            if value.dtype == ir.DataType.INT64:
                feed[value.name or ""] = rng.integers(0, 11, shape)
                continue
            base = rng.standard_normal((*shape[:-1], 1))
            feed[value.name or ""] = (rng.standard_normal(shape) + base + 0.5).astype(np.float32)
        found.append(feed)
    return found
