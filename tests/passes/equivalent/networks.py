"""Networks whose channels pass through norms, depthwise convolutions, gates, residual streams, reshapes; with what can be followed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from tests.passes.calibrate.networks import with_tensors

Shape = tuple[int, ...]


def made(text: str, shapes: dict[str, Shape], seed: int = 0, **constants: list[int]) -> ir.Model:
    """A graph in text form with random initializers, those called `scale..` positive, and integer ones."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {name: np.array(values) for name, values in constants.items()}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape) / np.sqrt(
            max(1, int(np.prod(shape[1:])) if len(shape) > 2 else sum(shape[:1]))
        )
        tensors[name] = np.abs(array) + 0.5 if name.startswith("scale") else array
    return with_tensors(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]> {text}'), tensors)


def mobile(seed: int = 0) -> ir.Model:
    """Pointwise, depthwise, pointwise convolution with Relus, pooling, a flattened image, Gemm."""
    return made(
        """net (float[1, 3, 8, 8] x) => (float[1, 5] y) {
            a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            r1 = Relu (a)
            d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 12> (r1, w2, b2)
            r2 = Relu (d)
            c = Conv (r2, w3, b3)
            r3 = LeakyRelu <alpha = 0.1> (c)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r3)
            f = Flatten (p)
            y = Gemm <transB = 1> (f, w4, b4)
        }""",
        {
            "w1": (12, 3, 3, 3), "b1": (12,), "w2": (12, 1, 3, 3), "b2": (12,), "w3": (8, 12, 1, 1), "b3": (8,),
            "w4": (5, 8 * 16), "b4": (5,),
        },
        seed,
    )  # fmt: skip


def block(seed: int = 0) -> ir.Model:
    """Embedding, pre-norm gated feed-forward with a residual stream, a Gelu one, pooling over tokens, classifier."""
    return made(
        """net (int64[1, 6] ids) => (float[1, 3] y) {
            h = Gather (table, ids)
            n1 = LayerNormalization <axis = -1> (h, scale1, shift1)
            g = MatMul (n1, wg)
            s = Sigmoid (g)
            gate = Mul (g, s)
            u = MatMul (n1, wu)
            m = Mul (gate, u)
            o = MatMul (m, wd)
            h2 = Add (h, o)
            n2 = RMSNormalization <axis = -1> (h2, scale2)
            e = MatMul (n2, we)
            eb = Add (e, be)
            z = Gelu (eb)
            t = MatMul (z, wf)
            h3 = Add (t, h2)
            k = ReduceMean <keepdims = 0> (h3, axes)
            y = MatMul (k, wc)
        }""",
        {
            "table": (11, 8), "scale1": (8,), "shift1": (8,), "wg": (8, 20), "wu": (8, 20), "wd": (20, 8), "scale2": (8,),
            "we": (8, 16), "be": (16,), "wf": (16, 8), "wc": (8, 3),
        },
        seed,
        axes=[1],
    )  # fmt: skip


def heads(seed: int = 0) -> ir.Model:
    """Channels split into heads, a softmax over scores, heads joined again; a product is read by a tied constant."""
    return made(
        """net (float[1, 6, 8] x) => (float[1, 6, 8] y) {
            a = MatMul (x, w0)
            q = MatMul (a, wq)
            k = MatMul (a, wk)
            v = MatMul (a, wv)
            qh = Reshape (q, split)
            kh = Reshape (k, split)
            vh = Reshape (v, split)
            qt = Transpose <perm = [0, 2, 1, 3]> (qh)
            kt = Transpose <perm = [0, 2, 3, 1]> (kh)
            vt = Transpose <perm = [0, 2, 1, 3]> (vh)
            s = MatMul (qt, kt)
            p = Softmax <axis = -1> (s)
            o = MatMul (p, vt)
            ot = Transpose <perm = [0, 2, 1, 3]> (o)
            j = Reshape (ot, join)
            y = MatMul (j, wo)
        }""",
        {"w0": (8, 8), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8)},
        seed,
        split=[1, 6, 2, 4],
        join=[1, 6, 8],
    )
