"""Small networks whose channels hang together in every way that removal must follow; random weights, odd sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from sparsec.passes.canonicalise import canonicalise
from sparsec.passes.structure.groups import Coupling, Family

Array = np.ndarray[Any, Any]


def build(
    text: str, shapes: dict[str, tuple[int, ...]], seed: int = 0, constants: dict[str, Any] | None = None
) -> ir.Model:
    """A canonical model: the body of a graph in ONNX's text form, with float32 normal weights of `shapes` (scaled by their fan-in) and
    `constants` as they are."""
    rng = np.random.default_rng(seed)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {23 if "RMSNorm" in text else 20}]>\nnet {text}'
    )
    tensors = {
        name: (rng.standard_normal(shape) / max(1, np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name, array in (constants or {}).items():
        tensors[name] = np.asarray(array, np.int64 if np.asarray(array).dtype.kind == "i" else np.float32)
    for name, array in tensors.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    result = ir.from_proto(inferred)
    for number, node in enumerate(result.graph):
        node.name = f"{node.op_type}{number}"
    canonicalise(result)
    return result


def residual(seed: int = 0) -> ir.Model:
    """x [1, 3, 9, 7]: stem, a block with identity, one whose shortcut drops pixels and pads channels, flattened Gemm."""
    return build(
        """(float[1, 3, 9, 7] x) => (float[1, 5] y)
        {
            s0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
            s = Relu (s0)
            a0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s, w1, b1)
            a = Relu (a0)
            c = Conv <kernel_shape = [1, 1]> (a, w2, b2)
            d0 = Add (c, s)
            d = Relu (d0)
            e0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (d, w3, b3)
            e = Relu (e0)
            f = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (e, w4, b4)
            half = Slice (d, zeros, ends, axes, steps)
            short = Pad (half, pads)
            g0 = Add (f, short)
            g = Tanh (g0)
            h = Flatten (g)
            y = Gemm <transB = 1> (h, w5, b5)
        }""",
        {
            "w0": (7, 3, 3, 3), "b0": (7,), "w1": (9, 7, 3, 3), "b1": (9,), "w2": (7, 9, 1, 1), "b2": (7,),
            "w3": (6, 7, 3, 3), "b3": (6,), "w4": (11, 6, 3, 3), "b4": (11,), "w5": (5, 11 * 20), "b5": (5,),
        },
        seed,
        {"zeros": [0, 0], "ends": [9, 7], "axes": [2, 3], "steps": [2, 2], "pads": [0, 2, 0, 0, 0, 2, 0, 0]},
    )  # fmt: skip


def branching(seed: int = 0) -> ir.Model:
    """x [1, 4, 6, 5]: depthwise (one and two outputs a channel) and grouped convolutions, Concat, Split, pooling."""
    return build(
        """(float[1, 4, 6, 5] x) => (float[1, 3, 3, 2] y)
        {
            a0 = Conv <kernel_shape = [1, 1]> (x, w0, b0)
            a = Clip (a0, low, high)
            d = Conv <group = 9, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, wd, bd)
            e = Conv <group = 9, kernel_shape = [3, 1], pads = [1, 0, 1, 0]> (a, we)
            p = Sigmoid (e)
            q = Concat <axis = 1> (d, p)
            h = Conv <kernel_shape = [1, 1]> (q, wh)
            g = Conv <group = 3, kernel_shape = [1, 1]> (h, wg, bg)
            left, right = Split <axis = 1> (g, parts)
            m = Mul (left, right)
            n = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)
            t = Transpose <perm = [0, 2, 3, 1]> (n)
            u0 = MatMul (t, wm)
            u = Transpose <perm = [0, 3, 1, 2]> (u0)
            y = Conv <kernel_shape = [1, 1]> (u, wy)
        }""",
        {
            "w0": (9, 4, 1, 1), "b0": (9,), "wd": (9, 1, 3, 3), "bd": (9,), "we": (18, 1, 3, 1),
            "wh": (9, 27, 1, 1), "wg": (12, 3, 1, 1), "bg": (12,),
            "wm": (6, 7), "wy": (3, 7, 1, 1),
        },
        seed,
        {"low": -1.0, "high": 1.0, "parts": [6, 6]},
    )  # fmt: skip


def transformer(
    seed: int = 0, *, post: bool = False, rms: bool = False, tied: bool = True, blocks: int = 2
) -> ir.Model:
    """ids [1, 5] -> embeddings of 12, `blocks` blocks of attention (3 heads of 4) and a gated MLP of 13, logits of the 11 words.

    post: norms behind the additions (BERT). rms: RMSNormalization. tied: logits by the transposed table.
    """
    norm = "RMSNormalization <axis = -1, epsilon = 0.01>" if rms else "LayerNormalization <axis = -1, epsilon = 0.01>"
    lines, shapes = [], {"table": (11, 12), "place": (5, 12), "wl": (12, 11)}
    lines.append("e = Gather (table, ids)\nx0 = Add (e, place)")
    x = "x0"

    def add_norm(value: str, name: str) -> str:
        shapes[f"{name}g"] = (12,)
        if not rms:
            shapes[f"{name}b"] = (12,)
        lines.append(f"{name} = {norm} ({value}, {name}g{'' if rms else f', {name}b'})")
        return name

    if post:
        x = add_norm(x, "n")
    for i in range(blocks):
        h = x if post else add_norm(x, f"na{i}")
        for part in "qkv":
            shapes[f"{part}w{i}"], shapes[f"{part}b{i}"] = (12, 12), (12,)
            order = "[0, 2, 3, 1]" if part == "k" else "[0, 2, 1, 3]"
            lines.append(
                f"{part}m{i} = MatMul ({h}, {part}w{i})\n{part}s{i} = Add ({part}m{i}, {part}b{i})\n"
                f"{part}r{i} = Reshape ({part}s{i}, split)\n{part}{i} = Transpose <perm = {order}> ({part}r{i})"
            )
        shapes |= {
            f"ow{i}": (12, 12),
            f"ob{i}": (12,),
            f"uw{i}": (12, 13),
            f"gw{i}": (12, 13),
            f"dw{i}": (13, 12),
            f"db{i}": (12,),
        }
        lines.append(
            f"z{i} = MatMul (q{i}, k{i})\nc{i} = Mul (z{i}, half)\np{i} = Softmax <axis = -1> (c{i})\nv_{i} = MatMul (p{i}, v{i})\n"
            f"t{i} = Transpose <perm = [0, 2, 1, 3]> (v_{i})\nj{i} = Reshape (t{i}, join)\no_{i} = MatMul (j{i}, ow{i})\n"
            f"o{i} = Add (o_{i}, ob{i})\na{i} = Add ({x}, o{i})"
        )
        x = add_norm(f"a{i}", f"nb{i}") if post else f"a{i}"
        h = x if post else add_norm(x, f"nb{i}")
        lines.append(
            f"u{i} = MatMul ({h}, uw{i})\ng_{i} = MatMul ({h}, gw{i})\ng{i} = Sigmoid (g_{i})\nug{i} = Mul (u{i}, g{i})\n"
            f"d_{i} = MatMul (ug{i}, dw{i})\nd{i} = Add (d_{i}, db{i})\ny{i} = Add ({x}, d{i})"
        )
        x = add_norm(f"y{i}", f"nc{i}") if post else f"y{i}"
    last = x if post else add_norm(x, "nl")
    lines.append(
        "back = Transpose <perm = [1, 0]> (table)\ny = MatMul (last, back)" if tied else "y = MatMul (last, wl)"
    )
    body = "\n".join(lines).replace("(last,", f"({last},")
    if tied:
        del shapes["wl"]
    model = build(
        f"(int64[1, 5] ids) => (float[1, 5, 11] y)\n{{\n{body}\n}}",
        shapes,
        seed,
        {"split": [1, 5, 3, 4], "join": [1, 5, 12], "half": 0.5},
    )
    return model


def feeds(model: ir.Model, count: int, seed: int = 1) -> list[dict[str, Array]]:
    """Inputs: floats with a mean of their own in each channel, whole numbers below 11."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        feed: dict[str, Array] = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            shape = tuple(int(size) for size in value.shape.numpy())
            whole = value.dtype == ir.DataType.INT64
            feed[value.name or ""] = (
                rng.integers(0, 11, shape) if whole else (rng.standard_normal(shape) + 0.3).astype(np.float32)
            )
        found.append(feed)
    return found


def masked(model: ir.Model, removed: list[tuple[Family, Array]]) -> ir.Model:
    """A copy in which all weights of the removed units are 0."""
    copy = model.clone()
    for family, units in removed:
        for tied in family.tied:
            value = copy.graph.initializers[tied.slot.value.name or ""]
            assert value.const_value is not None
            array = value.const_value.numpy().copy()
            np.moveaxis(array, tied.axis, 0)[np.isin(tied.units, units)] = 0
            value.const_value = ir.tensor(array, name=value.name)
    return copy


def family(coupling: Coupling, name: str) -> Family:
    """The family of that name."""
    return next(one for one in coupling.families if one.name == name)
