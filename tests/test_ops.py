"""The sparsec ONNX domain in stock onnxruntime: bodies equal the numpy reference, operators equal numpy and ONNX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sparsec import ops
from sparsec.activations import ACTIVATIONS, activation
from sparsec.errors import ModelError, SchemeError, WeightError
from sparsec.formats import EncodedWeight, Scheme, decode, encode
from tests.formats.cases import SIZES, legal_schemes, random_mask

FEW = (
    "fp32",
    "int8",
    "cb4-g4",
    "cb3.r2-c",
    "s50",
    "s2:4-int8",
    "s3x2@50-cb5-g4",
    "s50-uint4-g4",
    "ternary",
    "vq2d4-c",
    "s3x2@50-vq2d2",
    "nf4-g4",
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def graph_input(name: str, array: np.ndarray) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))


def run(
    built: list[ops.Built],
    inputs: dict[str, ir.Value],
    feeds: dict[str, np.ndarray],
    opset: int = 18,
    optimise: bool = True,
) -> list[np.ndarray]:
    """Run new nodes, each an output of its own, in stock onnxruntime."""
    for place, new in enumerate(built):
        new.output.name = f"y{place}"
    nodes, outputs = [new.node for new in built], [new.output for new in built]
    graph = ir.Graph(list(inputs.values()), outputs, nodes=nodes, opset_imports={"": opset}, name="test")
    model = ir.Model(graph, ir_version=8)
    for new in built:
        new.register(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, feeds)]


def random_weight(text: str | Scheme, rows: int, cols: int, rng: np.random.Generator) -> EncodedWeight:
    scheme = Scheme.parse(text) if isinstance(text, str) else text
    weight = rng.standard_normal((rows, cols)).astype(np.float32)
    return encode(weight, scheme, random_mask(scheme, rows, cols, rng))


def in_chunks(schemes: list[Scheme], size: int) -> list[list[Scheme]]:
    return [schemes[start : start + size] for start in range(0, len(schemes), size)]


def check_bodies(schemes: list[Scheme], size: tuple[int, int], rng: np.random.Generator) -> None:
    rows, cols = size
    ids = rng.integers(-rows, rows, (2, 3)).astype(np.int64)
    indices = graph_input("ids", ids)
    built, wanted = [], []
    for place, scheme in enumerate(schemes):
        encoded = random_weight(scheme, rows, cols, rng)
        inputs = ops.weight_inputs(encoded, f"w{place}")
        built += [ops.decode(inputs, [rows, cols]), ops.gather(inputs, indices)]
        wanted += [decode(encoded), decode(encoded)[ids]]
    found = run(built, {"ids": indices}, {"ids": ids}, optimise=False)
    for scheme, pair in zip(schemes, in_pairs(found, wanted), strict=True):
        for result, expected in pair:
            np.testing.assert_array_equal(result, expected, err_msg=str(scheme))


@pytest.mark.parametrize("place", range(len(SIZES)))
def test_decode_and_gather_bodies_equal_numpy(place: int, rng: np.random.Generator) -> None:
    # Some schemes on each size, others in every run; the slow test does all of them on all sizes.
    schemes = legal_schemes()
    check_bodies([schemes[i] for i in rng.choice(len(schemes), 30, replace=False)], SIZES[place], rng)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decode_and_gather_bodies_equal_numpy_on_every_size(size: tuple[int, int], rng: np.random.Generator) -> None:
    for schemes in in_chunks(legal_schemes(), 50):
        check_bodies(schemes, size, rng)


def in_pairs(found: list[np.ndarray], wanted: list[np.ndarray]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    both = list(zip(found, wanted, strict=True))
    return [both[start : start + 2] for start in range(0, len(both), 2)]


@pytest.mark.parametrize("scheme", [s for s in legal_schemes() if not s.is_dense][::7], ids=str)
def test_weight_without_stored_blocks(scheme: Scheme) -> None:
    encoded = encode(np.ones((5, 9), np.float32), scheme, np.zeros((5, 9), bool))
    (found,) = run([ops.decode(ops.weight_inputs(encoded, "w"), [5, 9])], {}, {})
    assert not found.any()


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
@pytest.mark.parametrize("text", FEW)
def test_matmul(text: str, opset: int, rng: np.random.Generator) -> None:
    rows, cols = 13, 22
    encoded = random_weight(text, rows, cols, rng)
    x = rng.standard_normal((2, 3, cols)).astype(np.float32)
    bias, residual = (rng.standard_normal(s).astype(np.float32) for s in ((rows,), (2, 3, rows)))
    feeds = {"x": x, "bias": bias, "residual": residual}
    inputs = {name: graph_input(name, array) for name, array in feeds.items()}
    weight = ops.weight_inputs(encoded, "w")
    built = [
        ops.matmul(inputs["x"], weight),
        ops.matmul(inputs["x"], weight, bias=inputs["bias"]),
        ops.matmul(inputs["x"], weight, residual=inputs["residual"], activation="relu"),
        ops.matmul(inputs["x"], weight, bias=inputs["bias"], residual=inputs["residual"], activation="gelu"),
    ]
    plain = x.astype(np.float64) @ decode(encoded).T.astype(np.float64)
    wanted = [
        plain,
        plain + bias,
        np.maximum(plain + residual, 0),
        activation("gelu")(plain + bias + residual),
    ]
    for new, found, expected in zip(built, run(built, inputs, feeds, opset), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert tuple(new.output.shape or ()) == found.shape


CONVS = [
    # x shape, outputs, kernel, strides, pads, dilations, group
    ((2, 6, 9, 7), 9, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), 3),
    ((1, 5, 8, 8), 5, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 5),
    ((1, 4, 5, 5), 7, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((2, 4, 17), 6, (5,), (3,), (2, 1), (2,), 2),
]


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("text", FEW)
def test_conv(text: str, case: tuple[tuple[int, ...], ...], rng: np.random.Generator) -> None:
    shape, outputs, kernel, strides, pads, dilations, group = case
    assert isinstance(outputs, int)
    assert isinstance(group, int)
    encoded = random_weight(text, outputs, shape[1] // group * int(np.prod(kernel)), rng)
    x = rng.standard_normal(shape).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    full = decode(encoded).reshape(outputs, -1, *kernel)
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilations, "group": group}
    conv_only = onnx_conv(x, full, bias, attributes)
    residual = rng.standard_normal(conv_only.shape).astype(np.float32)
    feeds = {"x": x, "bias": bias, "residual": residual}
    inputs = {name: graph_input(name, array) for name, array in feeds.items()}
    weight = ops.weight_inputs(encoded, "w")
    built = [
        ops.conv(inputs["x"], weight, bias=inputs["bias"], **attributes),
        ops.conv(
            inputs["x"], weight, residual=inputs["residual"], activation="clip", act_params=(-0.5, 1), **attributes
        ),
        ops.conv(
            inputs["x"], weight, bias=inputs["bias"], residual=inputs["residual"], activation="hardswish", **attributes
        ),
    ]
    without_bias = conv_only - bias.reshape(-1, *[1] * len(kernel))
    wanted = [
        conv_only,
        np.clip(without_bias + residual, -0.5, 1),
        activation("hardswish")(conv_only + residual),
    ]
    for new, found, expected in zip(built, run(built, inputs, feeds), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        assert tuple(new.output.shape or ()) == found.shape


def onnx_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, attributes: dict[str, object]) -> np.ndarray:
    """A plain ONNX Conv in onnxruntime."""
    names = {"x": x, "w": weight, "b": bias}
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in names.items()]
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Conv", list(names), ["y"], **attributes)
    graph = onnx.helper.make_graph([node], "conv", infos, [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, names)[0])


PARAMS = {"clip": (-0.75, 1.5), "leakyrelu": (0.2,), "hardsigmoid": (0.25, 0.4)}


def test_activations_equal_their_reference(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.standard_normal(50) * 4, [0, -100, 100]]).astype(np.float32)[None]
    value = graph_input("x", x)
    eye = ops.weight_inputs(np.eye(x.size, dtype=np.float32), "w")
    names = sorted(ACTIVATIONS)
    built = [ops.matmul(value, eye, activation=name, act_params=PARAMS.get(name, ())) for name in names]
    for name, found in zip(names, run(built, {"x": value}, {"x": x}), strict=True):
        np.testing.assert_allclose(
            found, activation(name, PARAMS.get(name, ()))(x, PARAMS.get(name, ())), 1e-5, 1e-5, err_msg=name
        )


@pytest.mark.parametrize("text", FEW)
@pytest.mark.parametrize("trans", [False, True])
def test_decode_restores_the_onnx_shape(text: str, trans: bool, rng: np.random.Generator) -> None:
    encoded = random_weight(text, 10, 18, rng)
    shape = [18, 10] if trans else [10, 2, 3, 3]
    (found,) = run([ops.decode(ops.weight_inputs(encoded, "w"), shape, trans=trans)], {}, {})
    weight = decode(encoded)
    np.testing.assert_array_equal(found, (weight.T if trans else weight).reshape(shape))


def test_int32_indices_of_any_rank(rng: np.random.Generator) -> None:
    encoded = random_weight("cb3-g4", 9, 7, rng)
    for ids in (np.array(4, np.int32), np.array([[[-1, 0]]], np.int32)):
        weight = ops.weight_inputs(encoded, "w")
        value = graph_input("ids", ids)
        (found,) = run([ops.gather(weight, value)], {"ids": value}, {"ids": ids})
        np.testing.assert_array_equal(found, decode(encoded)[ids])


@pytest.mark.parametrize("text", [*FEW, "cb7.i5-c"])
def test_view_is_the_inverse_also_through_a_file(text: str, rng: np.random.Generator) -> None:
    encoded = random_weight(text, 12, 18, rng)
    x, bias = (graph_input(n, np.zeros(s, np.float32)) for n, s in (("x", (1, 2, 5, 5)), ("bias", (12,))))
    new = ops.conv(
        *(x, ops.weight_inputs(encoded, "w")),
        **{"kernel_shape": (3, 3), "pads": (1, 0, 1, 0), "bias": bias, "activation": "clip", "act_params": (0, 6)},
    )
    new.output.name = "y"
    model = ir.Model(
        ir.Graph([x, bias], [new.output], nodes=[new.node], opset_imports={"": 21}, name="g"), ir_version=10
    )
    new.register(model)
    again = ir.from_proto(onnx.load_from_string(ir.to_proto(model).SerializeToString()))
    for node in (new.node, again.graph[0]):
        assert ops.is_sparsec(node)
        seen = ops.view(node)
        assert (seen.kind, seen.scheme, seen.rows, seen.cols) == ("Conv", encoded.scheme, 12, 18)
        assert (seen.x and seen.x.name, seen.bias and seen.bias.name, seen.residual) == ("x", "bias", None)
        assert (seen.activation, seen.act_params) == ("clip", (0.0, 6.0))
        assert (seen.kernel_shape, seen.strides, seen.pads) == ((3, 3), (1, 1), (1, 0, 1, 0))
        assert (seen.dilations, seen.group) == ((1, 1), 1)
        weight = seen.weight()
        assert isinstance(weight, np.ndarray) == encoded.scheme.is_plain
        read = weight if isinstance(weight, np.ndarray) else decode(weight)
        np.testing.assert_array_equal(read, decode(encoded))


def test_decode_node_hands_its_weight_to_a_fused_node(rng: np.random.Generator) -> None:
    encoded = random_weight("s2:4-cb4-c", 6, 10, rng)
    x = rng.standard_normal((3, 10)).astype(np.float32)
    value = graph_input("x", x)
    decoded = ops.decode(ops.weight_inputs(encoded, "w"), [10, 6], trans=True)
    fused = ops.matmul(value, ops.weight_inputs_of(decoded.node))
    found = run([decoded, fused], {"x": value}, {"x": x})
    np.testing.assert_allclose(x @ found[0], found[1], rtol=1e-4, atol=1e-5)


def test_equal_signatures_share_one_function(rng: np.random.Generator) -> None:
    x = graph_input("x", np.zeros((3, 10), np.float32))
    nodes = [ops.matmul(x, ops.weight_inputs(random_weight("int8", 6, 10, rng), f"w{i}")) for i in range(3)]
    plain = [ops.matmul(x, ops.weight_inputs(np.zeros((n, 10), np.float32), f"p{n}")) for n in (5, 6)]
    model = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g"), ir_version=8)
    for new in [*nodes, *plain]:
        new.register(model)
    assert sorted(overload for _, _, overload in model.functions) == ["fp32", "int8/6x10"]
    assert model.ir_version == 10
    assert model.graph.opset_imports["sparsec"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("text", ["cb4-g32", "s50-cb4-g32", "int8"])
def test_embedding_table(text: str, rng: np.random.Generator) -> None:
    encoded = random_weight(text, 30522, 384, rng)
    ids = rng.integers(0, 30522, (1, 128))
    value = graph_input("ids", ids)
    (found,) = run([ops.gather(ops.weight_inputs(encoded, "w"), value)], {"ids": value}, {"ids": ids})
    np.testing.assert_array_equal(found, decode(encoded)[ids])


def test_refusals(rng: np.random.Generator) -> None:
    x = graph_input("x", np.zeros((1, 4, 5, 5), np.float32))
    weight = ops.weight_inputs(random_weight("int8", 6, 10, rng), "w")
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ModelError, "kernel", lambda: ops.conv(x, weight, kernel_shape=(3, 3), name="c1")),
        (ModelError, "needs 3 dimensions", lambda: ops.conv(x, weight, kernel_shape=(5,))),
        (ModelError, "known: clip", lambda: ops.matmul(x, weight, activation="rely")),
        (ModelError, "takes 2 parameters", lambda: ops.matmul(x, weight, activation="clip")),
        (ModelError, "does not hold", lambda: ops.decode(weight, [6, 11])),
        (WeightError, "float32 matrix", lambda: ops.weight_inputs(np.zeros((3, 3)), "w")),
        (ModelError, "not a sparsec operator", lambda: ops.view(ir.node("Relu", [x]))),
    ]
    for kind, text, call in refused:
        with pytest.raises(kind, match=text):
            call()


def test_a_damaged_node_is_refused(rng: np.random.Generator) -> None:
    x = graph_input("x", np.zeros((3, 10), np.float32))

    def node() -> ir.Node:
        return ops.matmul(x, ops.weight_inputs(random_weight("int8", 6, 10, rng), "w"), name="fc").node

    broken = node()
    del broken.attributes["scheme"]
    with pytest.raises(ModelError, match=r"'fc'.*lacks the attribute 'scheme'"):
        ops.view(broken)
    broken = node()
    broken.attributes["scheme"] = ir.AttrString("scheme", "int9")
    with pytest.raises(SchemeError, match="int9"):
        ops.view(broken)
    broken = node()
    broken.attributes["scheme"] = ir.AttrString("scheme", "s50-int8-g4")
    with pytest.raises(ModelError, match="it takes"):
        ops.view(broken)
    broken = node()
    broken.replace_input_with(2, x)
    with pytest.raises(WeightError, match=r"'x'.*is not a constant"):
        ops.read_weight(broken)


def test_register_refuses_old_models_and_taken_names(rng: np.random.Generator) -> None:
    x = graph_input("x", np.zeros((3, 10), np.float32))
    first, second = (ops.matmul(x, ops.weight_inputs(random_weight("int8", 6, 10, rng), "w")) for _ in range(2))
    old = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={"": 17}, name="g"), ir_version=8)
    with pytest.raises(ModelError, match="opset 18 or later, the model has 17"):
        first.register(old)
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="g"), ir_version=8)
    first.register(model)
    first.register(model)
    with pytest.raises(ModelError, match=r"'w.codes' exists already"):
        second.register(model)
