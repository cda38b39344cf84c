"""Every operator against onnxruntime on fresh random inputs, one sample and many at once; what is refused is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from sparsec.errors import UnsupportedOpError
from sparsec.formats import encode
from sparsec.passes.differentiable.network import OPERATORS, Network
from sparsec.passes.fuse import Fuse
from sparsec.passes.insert_decode import insert_decode
from sparsec.reference import Reference
from tests.passes.calibrate.networks import choices, image_network, with_tensors

Array = np.ndarray[Any, Any]
X, XS, POSITIVE = "float[2, 3, 5] x", (2, 3, 5), {"x": lambda a: np.abs(a) + 0.1}


class Case:
    """One node: its text, its inputs, constant tensors; `kind` int64 for whole numbers, `prepare` for the range of an input."""

    def __init__(self, body: str, inputs: str = X, prepare: dict[str, Any] | None = None, **tensors: Any) -> None:
        self.body, self.inputs, self.prepare = body, inputs, prepare or {}
        self.tensors = {name: np.asarray(value) for name, value in tensors.items()}

    def model(self) -> ir.Model:
        text = f'<ir_version: 10, opset_import: ["" : 23]> net ({self.inputs}) => (y) {{ {self.body} }}'
        proto = onnx.parser.parse_model(text)
        for name, array in self.tensors.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        return ir.from_proto(inferred)

    def feed(self, model: ir.Model, rng: np.random.Generator) -> dict[str, Array]:
        found = {}
        for value in model.graph.inputs:
            assert value.shape is not None
            assert value.dtype is not None
            array = rng.standard_normal(tuple(int(d) for d in value.shape.numpy())) * 2
            if value.name in self.prepare:
                array = self.prepare[value.name](array)
            found[value.name or ""] = np.asarray(array).astype(value.dtype.numpy())
        return found


def rand(*shape: int) -> Array:
    return np.random.default_rng(int(np.prod(shape)) + len(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


TWO = "float[2, 3, 5] x, float[3, 1] z"
BOOLS = "bool[2, 3, 5] x, bool[3, 1] z"
FLAGS = {"x": lambda a: a > 0, "z": lambda a: a > 0}
MAP, PLANE = "float[2, 4, 7, 6] x", "float[2, 4, 9] x"
INDEX = "int64[2, 3] x"


def unary(name: str, **options: Any) -> tuple[str, Case]:
    return name, Case(f"y = {name} (x)", **options)


def pairwise(name: str, inputs: str = TWO, prepare: dict[str, Any] | None = None) -> tuple[str, Case]:
    return name, Case(f"y = {name} (x, z)", inputs, prepare)


CASES: list[tuple[str, Case]] = [
    *(unary(n) for n in ("Abs", "Neg", "Exp", "Sin", "Cos", "Erf", "Tanh", "Relu", "Sigmoid", "Softplus", "Softsign")),
    *(unary(n) for n in ("HardSwish", "Mish", "Floor", "Ceil", "Round", "Sign", "Identity", "Gelu", "LeakyRelu", "Elu")),
    *(unary(n, prepare=POSITIVE) for n in ("Sqrt", "Log", "Reciprocal")),
    *(unary(n) for n in ("HardSigmoid", "Softmax", "LogSoftmax", "ReduceMean", "ReduceLogSumExp", "Dropout")),
    unary("Not", inputs="bool[2, 3, 5] x", prepare=FLAGS),
    *(pairwise(n) for n in ("Add", "Sub", "Mul", "PRelu", "Max", "Min", "Sum", "Less", "Greater")),
    *(pairwise(n, BOOLS, FLAGS) for n in ("And", "Or", "Xor")),
    pairwise("Pow", prepare=POSITIVE),
    pairwise("Div", prepare={"z": lambda a: np.abs(a) + 0.5}),
    *(pairwise(n, "int64[2, 3, 5] x, int64[3, 1] z") for n in ("Equal", "LessOrEqual", "GreaterOrEqual")),
    ("Div", Case("y = Div (x, z)", "int64[2, 3] x, int64[3] z", {"x": lambda a: 9 * a, "z": lambda a: np.abs(a) + 1})),
    ("Where", Case("y = Where (c, x, z)", f"bool[2, 1, 5] c, {TWO}", {"c": lambda a: a > 0})),
    ("Cast", Case("y = Cast <to = 7> (x)")),
    ("Clip", Case("y = Clip (x, a, b)", a=np.float32(-0.3), b=np.float32(0.8))),
    ("Clip", Case("y = Clip (x, , b)", b=np.float32(0.8))),
    ("Gelu", Case('y = Gelu <approximate = "tanh"> (x)')),
    ("LeakyRelu", Case("y = LeakyRelu <alpha = 0.3> (x)")),
    ("Softmax", Case("y = Softmax <axis = 1> (x)")),
    ("Concat", Case("y = Concat <axis = -1> (x, z, x)", "float[2, 3] x, float[2, 4] z")),
    ("Expand", Case("y = Expand (x, s)", "float[3, 1] x", s=ints(2, 3, 4))),
    ("Flatten", Case("y = Flatten <axis = 2> (x)")),
    ("Gather", Case("y = Gather <axis = 1> (w, x)", INDEX, {"x": lambda a: np.clip(a, -4, 3)}, w=rand(5, 4, 3))),
    ("Gather", Case("y = Gather <axis = -1> (x, i)", i=ints(0, -1))),
    ("GatherElements", Case("y = GatherElements <axis = 1> (w, x)", INDEX, {"x": lambda a: np.clip(a, -4, 3)}, w=rand(2, 4))),
    ("GatherND", Case("y = GatherND (w, x)", "int64[3, 2] x", {"x": lambda a: np.clip(a, -2, 1)}, w=rand(3, 2, 4))),
    ("Pad", Case("y = Pad (x, p, v)", p=ints(0, 1, 2, 1, 0, 0), v=np.float32(1.5))),
    ("Pad", Case("y = Pad (x, p)", p=ints(0, 0, -1, 0, 1, 2))),
    ("Pad", Case("y = Pad (x, p, , a)", p=ints(2, 1), a=ints(-1))),
    *(("Pad", Case(f'y = Pad <mode = "{mode}"> (x, p)', p=ints(0, 1, 2, 0, 1, 3))) for mode in ("reflect", "edge", "wrap")),
    ("Reshape", Case("y = Reshape (x, s)", s=ints(0, -1))),
    ("Slice", Case("y = Slice (x, a, b, c, d)", a=ints(1, -1), b=ints(9, -9), c=ints(1, 2), d=ints(1, -2))),
    ("Split", Case("u, v = Split <axis = 2> (x, s) y = Mul (v, v)", s=ints(2, 3))),
    ("Squeeze", Case("y = Squeeze (x, a)", "float[2, 1, 3, 1] x", a=ints(1, -1))),
    ("Tile", Case("y = Tile (x, r)", r=ints(2, 1, 3))),
    ("Transpose", Case("y = Transpose <perm = [1, 2, 0]> (x)")),
    ("Transpose", Case("y = Transpose (x)")),
    ("Trilu", Case("y = Trilu <upper = 0> (x, k)", k=np.int64(1))),
    ("Trilu", Case("y = Trilu (x)")),
    ("Unsqueeze", Case("y = Unsqueeze (x, a)", a=ints(0, -1))),
    ("MatMul", Case("y = MatMul (x, z)", "float[2, 1, 3, 5] x, float[4, 5, 2] z")),
    ("Gemm", Case("y = Gemm <alpha = 0.5, beta = 2.0, transA = 1, transB = 1> (x, w, b)", "float[5, 3] x", w=rand(4, 5), b=rand(4))),
    ("Gemm", Case("y = Gemm (x, w)", "float[3, 5] x", w=rand(5, 4))),
    (
        "Conv",
        Case(
            "y = Conv <group = 2, strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]> (x, w, b)",
            MAP, w=rand(6, 2, 3, 2), b=rand(6),
        ),
    ),
    ("Conv", Case("y = Conv <pads = [1, 1]> (x, w)", PLANE, w=rand(3, 4, 3))),
    ("Conv", Case("y = Conv <strides = [2, 1, 1]> (x, w)", "float[1, 2, 5, 4, 3] x", w=rand(3, 2, 2, 3, 1))),
    (
        "ConvTranspose",
        Case("y = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 0], output_padding = [1, 0]> (x, w, b)", MAP,
            w=rand(4, 3, 3, 2), b=rand(3)),
    ),
    ("MaxPool", Case("y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1], ceil_mode = 1> (x)", MAP)),
    ("MaxPool", Case("y = MaxPool <kernel_shape = [3], dilations = [2]> (x)", PLANE)),
    ("AveragePool", Case("y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 0, 1]> (x)", MAP)),
    (
        "AveragePool",
        Case("y = AveragePool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1], count_include_pad = 1> (x)", MAP),
    ),
    ("AveragePool", Case("y = AveragePool <kernel_shape = [2], strides = [2], ceil_mode = 1> (x)", PLANE)),
    ("GlobalAveragePool", Case("y = GlobalAveragePool (x)", MAP)),
    ("GlobalMaxPool", Case("y = GlobalMaxPool (x)", PLANE)),
    ("BatchNormalization", Case("y = BatchNormalization (x, s, b, m, v)", MAP,
        s=rand(4), b=rand(4, 1)[:, 0], m=rand(4), v=np.abs(rand(4)))),
    ("InstanceNormalization", Case("y = InstanceNormalization (x, s, b)", MAP, s=rand(4), b=rand(4))),
    ("LayerNormalization", Case("y = LayerNormalization <axis = 1, epsilon = 0.01> (x, s, b)", s=rand(3, 5), b=rand(3, 5))),
    ("LayerNormalization", Case("y = LayerNormalization (x, s)", s=rand(5))),
    ("RMSNormalization", Case("y = RMSNormalization (x, s)", s=rand(5))),
    *((n, Case(f"y = {n} <keepdims = 0> (x, a)", a=ints(0, -1))) for n in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1")),
    *((n, Case(f"y = {n} (x, a)", a=ints(1))) for n in ("ReduceL2", "ReduceMean", "ReduceSumSquare")),
    ("ReduceSum", Case("y = ReduceSum <noop_with_empty_axes = 1> (x)")),
]  # fmt: skip


def test_every_operator_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(OPERATORS)


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_operators_agree_with_onnxruntime(name: str, case: Case) -> None:
    model, seed = case.model(), int(np.random.default_rng().integers(2**31))
    feeds = [case.feed(model, np.random.default_rng([seed, i])) for i in range(3)]
    reference = Reference(model)
    wanted = [next(iter(reference.run(feed).values())) for feed in feeds]
    network = Network(model)
    for feed, array in zip(feeds, wanted, strict=True):
        found = network({k: torch.from_numpy(v) for k, v in feed.items()}, {}, ["y"])["y"].numpy()
        assert found.dtype == array.dtype
        np.testing.assert_allclose(found, array, 2e-5, 2e-5, err_msg=f"{name}, seed {seed}")
    stacked = {k: torch.from_numpy(np.stack([feed[k] for feed in feeds])) for k in feeds[0]}
    together = network.batch(stacked, {}, ["y"])["y"].numpy()
    np.testing.assert_allclose(together, np.stack(wanted), 2e-5, 2e-5, err_msg=f"{name} side by side, seed {seed}")


def test_gradients_are_those_of_finite_differences() -> None:
    model = image_network()
    network = Network(model)
    rng = np.random.default_rng()
    feed = {"x": torch.from_numpy(rng.standard_normal((1, 6, 9, 7)).astype(np.float32)).double()}
    values = {k: v.double() for k, v in network.constants.items() if v.is_floating_point()}

    def total(weight: torch.Tensor) -> torch.Tensor:
        return network(feed, {**values, "w1": weight}, ["y"])["y"].square().sum()

    assert torch.autograd.gradcheck(total, values["w1"].clone().requires_grad_(True), eps=1e-6, atol=1e-4)


def test_inner_values_and_other_constants() -> None:
    model = image_network()
    network = Network(model)
    feed = {"x": torch.randn(1, 6, 9, 7)}
    found = network(feed, {"b3": torch.zeros(5)}, ["r", "y"])
    plain = network(feed, {}, ["a", "y"])
    torch.testing.assert_close(found["r"], torch.relu(plain["a"]))
    torch.testing.assert_close(found["y"], plain["y"] - network.constants["b3"])


def test_what_has_no_gradient_is_named_before_any_work() -> None:
    model = with_tensors(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 20]>
            net (float[1, 6] x) => (float[1, 6] y, int64[1, 1] z)
            { a = Hardmax (x) y = MatMul (a, w) z = ArgMax <axis = 1> (y) }"""
        ),
        {"w": np.eye(6)},
    )
    with pytest.raises(UnsupportedOpError, match=r"(?s)2 node.*Hardmax0 \(ai.onnx::Hardmax\).*ArgMax.*Supported: Abs"):
        Network(model)


def test_a_form_of_an_operator_that_is_refused_says_why() -> None:
    model = Case('y = Conv <auto_pad = "SAME_UPPER"> (x, w)', MAP, w=rand(3, 4, 3, 3)).model()
    with pytest.raises(UnsupportedOpError, match="auto_pad SAME_UPPER"):
        Network(model)


def test_decoded_weights() -> None:
    model = image_network()
    for choice in choices(model, "cb3-g32"):
        insert_decode(model, choice, encode(choice.weight.matrix(), choice.scheme))
    network = Network(model)
    assert set(network.weights) == {"w1.decoded", "w2.decoded", "w3.decoded"}
    x = np.random.default_rng(3).standard_normal((1, 6, 9, 7)).astype(np.float32)
    found = network({"x": torch.from_numpy(x)}, {}, ["y"])["y"].numpy()
    for name in list(network.weights):
        assert network.weights[name].output.name == name
    fused = Fuse()(model.clone()).model
    np.testing.assert_allclose(found, Reference(fused).run({"x": x})["y"], 1e-4, 1e-5)
