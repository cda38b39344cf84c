"""Whatever a user can get wrong: one clear error through the command line and the API, and nothing half-written.

The command line: exit code, words of the message, no stack trace, and a folder that is byte for byte what it was before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.cli import main
from sparsec.errors import (
    BundleError,
    InputError,
    ModelError,
    OutputError,
    RecipeError,
    ShapeError,
    TargetError,
    UnsupportedOpError,
    VerificationError,
    WeightError,
)
from tests.models import DIGITS_MLP

Expect = Callable[..., str]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with the content of the files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Expect:
    """Runs a command in `tmp_path` that must fail: checks exit code, words of the message, and that nothing changed."""
    shutil.copy(DIGITS_MLP, tmp_path / "mlp.onnx")
    monkeypatch.chdir(tmp_path)

    def run(code: int, words: list[str], *arguments: str) -> str:
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main(list(arguments)) == code
        captured = capsys.readouterr()
        for word in words:
            assert word in captured.err, captured.err
        assert "Traceback" not in captured.err
        assert "bug in sparsec" not in captured.err
        assert captured.out == ""
        assert snapshot(tmp_path) == before
        return captured.err

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle of the small network; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("good") / "mlp"
    sparsec.compile(DIGITS_MLP, input_shapes={"N": 1}).save(folder)
    return folder


def small_graph(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], **imports: int) -> onnx.ModelProto:
    """x float32 [1, 4] -> nodes -> y, in opset 18 plus the imports."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d.replace("_", "."), v) for d, v in imports.items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


# --- the model file ---


@pytest.mark.parametrize(
    "command", [["compress", "no.onnx", "out.onnx"], ["compile", "no.onnx"], ["inspect", "no.onnx"]]
)
def test_missing_file(command: list[str], fails: Expect) -> None:
    fails(1, ["no.onnx", "no such file"], *command)
    with pytest.raises(ModelError, match="no such file"):
        sparsec.compile("no.onnx")


def test_truncated_file(tmp_path: Path, fails: Expect) -> None:
    data = DIGITS_MLP.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    fails(1, ["cut.onnx", "truncated"], "compile", "cut.onnx", "-o", "out")
    fails(1, ["cut.onnx", "truncated"], "cut.onnx", "out.onnx")
    with pytest.raises(ModelError, match="truncated"):
        sparsec.compress(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "not an ONNX model"), (b"PK\x03\x04rest", "zip archive"), (b"just some text\n" * 9, "not")],
    ids=["empty", "zip", "text"],
)
def test_file_that_is_not_onnx(content: bytes, word: str, tmp_path: Path, fails: Expect) -> None:
    (tmp_path / "foreign.onnx").write_bytes(content)
    fails(1, ["foreign.onnx", word], "compile", "foreign.onnx", "-o", "out")
    with pytest.raises(ModelError, match=word):
        sparsec.compile(tmp_path / "foreign.onnx")


def test_unsupported_ops_are_all_listed(tmp_path: Path, fails: Expect) -> None:
    model = small_graph(
        [
            helper.make_node("Frobnicate", ["x"], ["a"], "first", domain="com.acme"),
            helper.make_node("Relu", ["a"], ["b"], "fine"),
            helper.make_node("Whirl", ["b"], ["y"], "second", domain="com.acme"),
        ],
        {},
        com_acme=3,
    )
    for name in ("a", "b"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4]))
    onnx.save(model, tmp_path / "odd.onnx")
    words = ["2 node(s)", "com.acme::Frobnicate (opset 3) node 'first'", "com.acme::Whirl (opset 3) node 'second'"]
    message = fails(1, words, "compile", "odd.onnx", "-o", "out")
    assert "fine" not in message
    with pytest.raises(UnsupportedOpError, match="second"):
        sparsec.compile(model)


def test_unknown_ops_are_named_though_nobody_knows_their_shapes(tmp_path: Path, fails: Expect) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], "first", domain="com.acme"),
        helper.make_node("Whirl", ["a"], ["b"], "second", domain="com.acme"),
        helper.make_node("Relu", ["b"], ["y"], "fine"),
    ]
    model = small_graph(nodes, {}, com_acme=3)
    onnx.save(model, tmp_path / "odd.onnx")
    words = ["2 node(s)", "com.acme::Frobnicate (opset 3) node 'first'", "com.acme::Whirl (opset 3) node 'second'"]
    fails(1, words, "compile", "odd.onnx", "-o", "out")
    with pytest.raises(UnsupportedOpError, match="second"):
        sparsec.compress(model)


def test_shape_that_depends_on_data(tmp_path: Path, fails: Expect) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], "find"),
        helper.make_node("Cast", ["a"], ["y"], "after", to=TensorProto.FLOAT),
    ]
    onnx.save(small_graph(nodes, {}), tmp_path / "nz.onnx")
    message = fails(1, ["NonZero (find): [2, ?]"], "compile", "nz.onnx", "-o", "out")
    assert "after" not in message  # the cause only, not what follows from it


def test_unbound_dynamic_shape(fails: Expect) -> None:
    fails(1, ["axis 0 (N)", "input_shapes={'N': 1}"], "compile", "mlp.onnx", "-o", "out")
    fails(1, ["'M'", "no input or dimension", "Dimensions: N"], "mlp.onnx", "o.onnx", "--input-shapes", "M=1")
    with pytest.raises(ShapeError, match="dynamic"):
        sparsec.compile(DIGITS_MLP)


@pytest.mark.parametrize("text", ["N", "N=", "=3", "x=1x", "x=axb"])
def test_shape_option_that_does_not_parse(text: str, fails: Expect) -> None:
    fails(2, ["--input-shapes"], "compile", "mlp.onnx", "-o", "out", "--input-shapes", text)


def test_weight_that_is_not_constant(tmp_path: Path, fails: Expect) -> None:
    """The filter of a convolution comes from an input: there is nothing to compress and no kernel for it."""
    model = small_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["w"], "computed_weight"),
            helper.make_node("Conv", ["image", "w"], ["y"], "conv_of_input"),
        ],
        {"shape": np.array([1, 1, 2, 2], np.int64)},
    )
    model.graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 5, 5]))
    onnx.save(model, tmp_path / "dynamic.onnx")
    fails(1, ["Conv", "conv_of_input"], "compile", "dynamic.onnx", "-o", "out")
    with pytest.raises((UnsupportedOpError, WeightError), match="conv_of_input"):
        sparsec.compile(model)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_weights(value: float, tmp_path: Path, fails: Expect) -> None:
    weight = np.ones((4, 300), np.float32)
    weight[2, 1] = value
    model = small_graph([helper.make_node("MatMul", ["x", "bad_weight"], ["y"], "mm")], {"bad_weight": weight})
    onnx.save(model, tmp_path / "nan.onnx")
    fails(1, ["NaN or Inf", "bad_weight", "1 of 1200"], "compile", "nan.onnx", "-o", "out", "--recipe", "int8")
    fails(1, ["bad_weight"], "nan.onnx", "out.onnx")
    with pytest.raises(WeightError, match="bad_weight"):
        sparsec.compile(model)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_nan_in_other_constants(kind: Any, tmp_path: Path, fails: Expect) -> None:
    """A bias, and a weight of a type that is not compressed."""
    weight, bias = np.ones((4, 30), kind), np.zeros(30, kind)
    (weight if kind is np.float16 else bias)[-1] = np.nan
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], "cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(kind))),
        helper.make_node("MatMul", ["c", "weight"], ["m"], "mm"),
        helper.make_node("Add", ["m", "bias"], ["s"], "add"),
        helper.make_node("Cast", ["s"], ["y"], "back", to=TensorProto.FLOAT),
    ]
    model = small_graph(nodes, {"weight": weight, "bias": bias})
    onnx.save(model, tmp_path / "nan.onnx")
    name = "weight (MatMul" if kind is np.float16 else "bias (Add"
    fails(1, ["NaN or Inf", name], "compile", "nan.onnx", "-o", "out")
    with pytest.raises(WeightError, match="NaN"):
        sparsec.compress(model)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([("Relu", ["nothing"], ["y"], "r")], ["Relu 'r' reads 'nothing', which nothing makes"]),
        ([("Relu", ["x"], ["y"], "r"), ("Neg", ["x"], ["y"], "n")], ["Neg 'n' makes 'y', which exists already"]),
        (
            [("Add", ["b", "x"], ["a"], "first"), ("Neg", ["a"], ["b"], "n"), ("Neg", ["b"], ["y"], "o")],
            ["'first'", "circle"],
        ),
        ([("Relu", ["x"], ["z"], "r")], ["output 'y' is made by nothing"]),
    ],
    ids=["dangling", "twice", "circle", "output"],
)
def test_graph_that_is_none(nodes: list[Any], words: list[str], tmp_path: Path, fails: Expect) -> None:
    model = small_graph([helper.make_node(*node) for node in nodes], {})
    onnx.save(model, tmp_path / "odd.onnx")
    fails(1, ["odd.onnx", *words], "compile", "odd.onnx", "-o", "out")
    fails(1, words, "odd.onnx", "out.onnx")
    with pytest.raises(ModelError, match="no valid ONNX graph"):
        sparsec.compile(model)


def test_subgraphs_read_what_lies_outside_of_them() -> None:
    from sparsec.frontend.wellformed import check_graph

    def branch(read: str) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
        return helper.make_graph([helper.make_node("Neg", [read], ["b"], "inner")], "branch", [], out)

    for read, problem in (("x", None), ("a", None), ("missing", "Neg 'inner' reads 'missing'")):
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], "r"),
            helper.make_node("If", ["c"], ["y"], "if", then_branch=branch(read), else_branch=branch("a")),
        ]
        model = small_graph(nodes, {"c": np.array(True)})
        if problem is None:
            check_graph(model.graph, "here")
        else:
            with pytest.raises(ModelError, match=problem):
                check_graph(model.graph, "here")


def test_shapes_that_do_not_fit(tmp_path: Path, fails: Expect) -> None:
    model = small_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], {"w": np.ones((5, 3), np.float32)})
    onnx.save(model, tmp_path / "misfit.onnx")
    fails(1, ["MatMul (mm)", "Incompatible dimensions"], "compile", "misfit.onnx", "-o", "out")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"], "r"),
        helper.make_node("Conv", ["image", "w"], ["y"], "wide"),
    ]
    weights = {"shape": np.array([1, 1, 2, 2]), "w": np.ones((1, 1, 7, 7), np.float32)}
    onnx.save(small_graph(nodes, weights), tmp_path / "window.onnx")
    fails(1, ["Conv (wide)", "window is larger"], "compile", "window.onnx", "-o", "out")
    with pytest.raises(ModelError, match="mm"):
        sparsec.compile(model)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.COMPLEX64, TensorProto.STRING])
def test_element_type_without_kernels(kind: int, tmp_path: Path, fails: Expect) -> None:
    model = small_graph([helper.make_node("Identity", ["x"], ["y"], "same")], {})
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = kind
    onnx.save(model, tmp_path / "odd.onnx")
    name = TensorProto.DataType.Name(kind).lower()
    fails(1, ["1 node(s)", "Identity", f"element type {name}", "float32"], "compile", "odd.onnx", "-o", "out")
    with pytest.raises(UnsupportedOpError, match=name):
        sparsec.compile(model)


@pytest.mark.parametrize("cut", [0.02, 0.3, 0.6, 0.9, 0.97, 0.999])
def test_file_cut_anywhere(cut: float, tmp_path: Path, fails: Expect) -> None:
    data = DIGITS_MLP.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(cut * len(data))])
    fails(1, ["cut.onnx"], "compile", "cut.onnx", "-o", "out", "--input-shapes", "N=1")


def test_external_data_that_is_cut_or_gone(tmp_path: Path, fails: Expect) -> None:
    model = small_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "mm")], {"w": np.ones((4, 300), np.float32)})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=10)
    (tmp_path / "m.bin").write_bytes(bytes(100))
    fails(1, ["w: ", "m.bin has 100 bytes, 4800 are needed"], "compile", "m.onnx", "-o", "out")
    (tmp_path / "m.bin").unlink()
    fails(1, ["w: ", "m.bin is missing"], "m.onnx", "out.onnx")


# --- recipe and target ---


def test_every_error_is_one_kind() -> None:
    with pytest.raises(sparsec.SparsecError):
        sparsec.compile("no.onnx")


@pytest.mark.parametrize("recipe", [123, ["int8"], b"int8", {"version": 1, "rulez": []}], ids=str)
def test_recipe_of_a_wrong_kind(recipe: Any) -> None:
    with pytest.raises(RecipeError, match=r"found|unknown key"):
        sparsec.compress(DIGITS_MLP, recipe, input_shapes={"N": 1})


def test_empty_and_missing_recipes(fails: Expect) -> None:
    for recipe, words in (("", ["recipe ''"]), ("none.yaml", ["none.yaml", "No such file"])):
        fails(1, words, "mlp.onnx", "out.onnx", "--recipe", recipe, "--input-shapes", "N=1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version: 1\nrules:\n- target: '*'\n  scheme: int8\n", ["line 3", "unknown key", "did you mean 'targets'"]),
        ("version: 1\nrules:\n- scheme: int9\n", ["line 3", "int9"]),
        ("version: 1\nrules:\n- targets: hiden.weight\n  scheme: int8\n", ["matches none", "'hidden.weight'"]),
        ("version: 2\n", ["version"]),
        ("- int8\n- int4\n", ["mapping"]),
        ("version: [1\n", ["YAML"]),
        ("version: 1\nrules:\n- scheme: int8\n  scheme: int4\n", ["line 4", "'scheme' is given twice"]),
        ("version: 1\nrules: int8\n", ["line 2", "should be a list"]),
    ],
    ids=["key", "scheme", "selector", "version", "list", "yaml", "twice", "kind"],
)
def test_bad_recipe_file(text: str, words: list[str], tmp_path: Path, fails: Expect) -> None:
    (tmp_path / "r.yaml").write_text(text)
    options = ["--recipe", "r.yaml", "--input-shapes", "N=1"]
    fails(1, words, "compile", "mlp.onnx", "-o", "out", *options)
    fails(1, words, "compress", "mlp.onnx", "out.onnx", *options)
    with pytest.raises(RecipeError):
        sparsec.compress(DIGITS_MLP, tmp_path / "r.yaml", input_shapes={"N": 1})


def test_scheme_that_does_not_parse(fails: Expect) -> None:
    fails(1, ["cb9", "Allowed:"], "mlp.onnx", "out.onnx", "--recipe", "cb9-g32", "--input-shapes", "N=1")
    with pytest.raises(RecipeError, match="balance"):
        sparsec.compress(DIGITS_MLP, "balance", input_shapes={"N": 1})


def test_unknown_target(fails: Expect) -> None:
    words = ["unknown target 'amr'", "did you mean 'arm'", "x86-avx2"]
    fails(2, words, "compile", "mlp.onnx", "--target", "amr", "-o", "out", "--input-shapes", "N=1")
    with pytest.raises(TargetError, match="arm"):
        sparsec.compile(DIGITS_MLP, "amr")


# --- running ---


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({"x": np.zeros((1, 63), np.float32)}, ["'x'", "shape"]),
        ({"x": np.zeros((1, 64), np.float64)}, ["'x'", "dtype float64"]),
        ({"x": np.zeros(64, np.float32)}, ["shape"]),
        ({}, ["missing: 'x'"]),
        ({"x": np.zeros((1, 64), np.float32), "y": np.zeros(1)}, ["no input named 'y'"]),
        ([np.zeros((1, 64), np.float32)] * 2, ["2 arrays given"]),
        ({"x": [0.0] * 64}, ["not a numpy array"]),
    ],
    ids=["shape", "dtype", "rank", "missing", "unknown", "count", "list"],
)
def test_wrong_inputs_at_run(feed: Any, words: list[str], bundle: Path) -> None:
    program = sparsec.load(bundle)
    with pytest.raises(InputError) as caught:
        program.run(feed)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "x: float32[1, 64]" in str(caught.value)


def test_wrong_inputs_file(tmp_path: Path, fails: Expect) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 65), np.float32))
    words = ["x.npz", "'x' is float32[1, 65]", "float32[1, 64]"]
    fails(1, words, "compile", "mlp.onnx", "-o", "out", "--input-shapes", "N=1", "--inputs", "x.npz")


def test_inputs_file_that_is_none(tmp_path: Path, fails: Expect) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 64), np.float32))
    (tmp_path / "t.npz").write_text("text")
    for name, word in (("a.npy", "numpy.savez"), ("t.npz", "numpy.savez"), ("none.npz", "no such file")):
        fails(1, [name, word], "compile", "mlp.onnx", "-o", "out", "--input-shapes", "N=1", "--inputs", name)


def damage(folder: Path, how: str) -> None:
    path = folder / "weights.bin"
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-3] ^= 1
    elif how == "header":
        data[17] ^= 1
    elif how == "cut":
        del data[-100:]
    elif how == "empty":
        data.clear()
    elif how == "foreign":
        data[:] = b"something else entirely" * 99
    path.write_bytes(data)
    if how == "gone":
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "header", "cut", "empty", "foreign", "gone"])
def test_bad_weights_file(how: str, bundle: Path, tmp_path: Path, fails: Expect) -> None:
    shutil.copytree(bundle, tmp_path / "b")
    damage(tmp_path / "b", how)
    with pytest.raises(BundleError, match=r"weights\.bin"):
        sparsec.load(tmp_path / "b")
    fails(1, ["weights.bin"], "verify", "mlp.onnx", "b")


def test_weights_of_another_model(bundle: Path, tmp_path: Path) -> None:
    other = sparsec.compile(DIGITS_MLP, input_shapes={"N": 2}).save(tmp_path / "other")
    shutil.copytree(bundle, tmp_path / "b")
    shutil.copy(other / "weights.bin", tmp_path / "b" / "weights.bin")
    with pytest.raises(BundleError, match=r"weights\.bin"):
        sparsec.load(tmp_path / "b")


def test_bundle_that_is_none(tmp_path: Path, bundle: Path, fails: Expect) -> None:
    (tmp_path / "empty").mkdir()
    for command in (["inspect", "empty"], ["verify", "mlp.onnx", "empty"]):
        fails(1, ["empty", "manifest.json"], *command)
    with pytest.raises(BundleError, match="no such"):
        sparsec.load(tmp_path / "nowhere")
    shutil.copytree(bundle, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text("{")
    fails(1, ["manifest.json"], "inspect", "b")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        sparsec.load(tmp_path / "b")


# --- output ---


def test_output_folder_that_exists_is_kept(bundle: Path, tmp_path: Path, fails: Expect) -> None:
    shutil.copytree(bundle, tmp_path / "out")
    options = ["compile", "mlp.onnx", "-o", "out", "--input-shapes", "N=1"]
    fails(1, ["out exists", "--force"], *options)
    with pytest.raises(OutputError, match="exists"):
        sparsec.compile(DIGITS_MLP, input_shapes={"N": 1}, verify=False).save(tmp_path / "out")
    assert main([*options, "--recipe", "int8", "--force"]) == 0
    layers = json.loads((tmp_path / "out" / "report.json").read_text())["layers"]
    assert layers[0]["scheme"] == "int8"


def test_folder_that_is_no_bundle_is_kept_even_with_force(tmp_path: Path, fails: Expect) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    fails(1, ["no sparsec bundle"], "compile", "mlp.onnx", "-o", "home", "--input-shapes", "N=1", "--force")
    with pytest.raises(OutputError):
        sparsec.compile(DIGITS_MLP, input_shapes={"N": 1}, verify=False).save(tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_output_file_that_exists_is_kept(tmp_path: Path, fails: Expect) -> None:
    (tmp_path / "out.onnx").write_text("mine")
    options = ["mlp.onnx", "out.onnx", "--input-shapes", "N=1"]
    fails(1, ["out.onnx exists", "--force"], *options)
    with pytest.raises(OutputError, match="exists"):
        sparsec.compress(DIGITS_MLP, input_shapes={"N": 1}).save(tmp_path / "out.onnx")
    assert main([*options, "--force"]) == 0
    assert onnx.load(tmp_path / "out.onnx").graph.node


def test_output_that_cannot_be_written(fails: Expect) -> None:
    fails(1, ["cannot write"], "mlp.onnx", "mlp.onnx/out.onnx", "--input-shapes", "N=1")


# --- verification ---


def test_wrong_program_is_not_written(monkeypatch: pytest.MonkeyPatch, fails: Expect) -> None:
    """The kernels are right, so the weights are changed behind the compiler's back."""
    from sparsec.codegen import bundle as bundles

    honest = bundles.make_blob

    def forged(plan: Any, model_id: int) -> Any:
        largest = max((buffer for _, buffer in plan.stored), key=lambda b: b.nbytes)
        largest.data = largest.data.copy()
        largest.data.reshape(-1)[:8] += 1
        return honest(plan, model_id)

    monkeypatch.setattr(bundles, "make_blob", forged)
    words = ["differs from the original", "logits", "FAILED", "--no-verify"]
    fails(3, words, "compile", "mlp.onnx", "-o", "out", "--input-shapes", "N=1")
    with pytest.raises(VerificationError, match="logits"):
        sparsec.compile(DIGITS_MLP, input_shapes={"N": 1})


def test_target_that_cannot_run_here_needs_no_verify(monkeypatch: pytest.MonkeyPatch, fails: Expect) -> None:
    from sparsec import emulate

    monkeypatch.setattr(emulate, "emulator", lambda arch: None)
    foreign = "arm" if emulate.host_target().arch == "x86_64" else "x86-avx2"
    words = ["cannot be verified here", "qemu", "--no-verify"]
    fails(3, words, "compile", "mlp.onnx", "--target", foreign, "-o", "out", "--input-shapes", "N=1")
    with pytest.raises(TargetError, match="qemu"):
        sparsec.compile(DIGITS_MLP, foreign, input_shapes={"N": 1}, verify=False).run({})
