"""The face: compress, compile, save, load, benchmark; portable ONNX and compiled program agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import sparsec
from sparsec.api import c_name, default_name
from sparsec.emulate import runs_here
from sparsec.errors import InputError, TargetError
from sparsec.reference import Reference
from sparsec.target import resolve_target
from sparsec.verify import compare
from tests.models import DIGITS, DIGITS_MLP, accuracy, held_out

RNG = np.random.default_rng(11)


def test_import_pulls_nothing_heavy() -> None:
    code = (
        "import sparsec, sys; "
        "assert not {'numpy', 'onnx', 'torch', 'tvm', 'onnxruntime', 'matplotlib'} & set(sys.modules); "
        "import sparsec.api; assert not {'torch', 'tvm', 'onnxruntime', 'matplotlib'} & set(sys.modules); "
        "assert set(sparsec.__all__) <= set(dir(sparsec))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_name"):
        sparsec.no_such_name  # noqa: B018


@pytest.mark.parametrize("scheme", ["fp32", "int8", "cb4-g32", "s2:4", "s16x1@50-cb4-g32"])
def test_program_equals_portable_onnx_on_fresh_inputs(scheme: str, tmp_path: Path) -> None:
    recipe = {"version": 1, "rules": [{"targets": "*", "scheme": scheme}], "min_elements": 128}
    small = sparsec.compress(DIGITS, recipe, input_shapes={"N": 3})
    path = small.save(tmp_path / "small.onnx")
    program = sparsec.compile(DIGITS, recipe=recipe, input_shapes={"N": 3})
    x = RNG.standard_normal((3, 1, 8, 8), dtype=np.float32)
    (row,) = compare(program.run({"x": x}), Reference(path).run({"x": x}))
    assert row.within(1e-4), row
    assert [layer.record.scheme for layer in program.report.layers].count(scheme) >= 4


def test_dense_program_has_the_accuracy_of_the_original() -> None:
    images, labels = held_out()
    images, labels = images[:97], labels[:97]
    program = sparsec.compile(DIGITS, input_shapes={"N": 97}, inputs={"x": images}, threads=2)
    logits = program.run({"x": images})["logits"]
    wanted = Reference(DIGITS).run({"x": images})["logits"]
    assert accuracy(logits, labels) == accuracy(wanted, labels) > 0.9
    check = program.report.verification
    assert check is not None
    assert check.inputs == "given by the caller"
    assert check.error < 1e-5


def test_every_kind_of_model_gives_the_same_program() -> None:
    proto = onnx.load(DIGITS_MLP)
    x = RNG.standard_normal((1, 64), dtype=np.float32)
    results = [
        sparsec.compile(model, input_shapes={"N": 1}, verify=False).run([x])["logits"]
        for model in (DIGITS_MLP, str(DIGITS_MLP), proto, proto.SerializeToString(), ir.from_proto(proto))
    ]
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_a_model_with_external_data(tmp_path: Path) -> None:
    onnx.save(
        onnx.load(DIGITS_MLP), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=64
    )
    program = sparsec.compile(tmp_path / "m.onnx", input_shapes={"N": 1})
    size = sum((tmp_path / name).stat().st_size for name in ("m.onnx", "m.data"))
    assert program.report.before.file_bytes == pytest.approx(size, rel=0.3)
    small = sparsec.compress(tmp_path / "m.onnx", "int8", input_shapes={"N": 1}).save(tmp_path / "out" / "small.onnx")
    (tmp_path / "m.data").unlink()
    assert Reference(small).outputs == ["logits"]


def test_a_torch_module() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(13, 37), torch.nn.ReLU(), torch.nn.Linear(37, 5))
    x = torch.randn(2, 13)
    program = sparsec.compile(module, example_inputs=(x,))
    assert program.name == "sequential"
    (found,) = program.run([x.numpy()]).values()
    np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_save_and_load(tmp_path: Path) -> None:
    program = sparsec.compile(DIGITS_MLP, recipe="int8", input_shapes={"N": 5}, name="My Model!")
    folder = program.save(tmp_path / "bundle")
    loaded = sparsec.load(folder, threads=2)
    x = RNG.standard_normal((5, 64), dtype=np.float32)
    assert np.array_equal(loaded.run({"x": x})["logits"], program.run({"x": x})["logits"])
    assert loaded.inputs == program.inputs
    assert loaded.outputs == program.outputs
    assert (folder / "include" / "my_model.h").exists()
    assert "hidden.weight" in (folder / "effective-recipe.yaml").read_text()
    assert (folder / "weights.bin").stat().st_size == program.weights_bytes == program.report.after.file_bytes


def test_two_compiles_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [
        sparsec.compile(DIGITS_MLP, recipe="cb4-g32", input_shapes={"N": 1}, threads=threads).save(
            tmp_path / str(threads)
        )
        for threads in (1, 2)
    ]
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in folders]
    assert names[0] == names[1]
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    small = [sparsec.compress(DIGITS_MLP, "cb4-g32", input_shapes={"N": 1}).to_bytes() for _ in range(2)]
    assert small[0] == small[1]


def test_a_compressed_file_stays_compressed(tmp_path: Path) -> None:
    path = sparsec.compress(DIGITS_MLP, "cb4-g32", input_shapes={"N": 1}).save(tmp_path / "small.onnx")
    from_file = sparsec.compile(path)
    direct = sparsec.compile(DIGITS_MLP, recipe="cb4-g32", input_shapes={"N": 1})
    assert [(r.record.name, r.record.scheme, r.record.nbytes) for r in from_file.report.layers] == [
        (r.record.name, r.record.scheme, r.record.nbytes) for r in direct.report.layers
    ]
    assert from_file.weights_bytes == direct.weights_bytes
    x = RNG.standard_normal((1, 64), dtype=np.float32)
    assert np.array_equal(from_file.run([x])["logits"], direct.run([x])["logits"])


def test_the_effective_recipe_gives_the_same_result() -> None:
    first = sparsec.compress(DIGITS, "balanced", input_shapes={"N": 1}, verify=False)
    again = sparsec.compress(DIGITS, first.recipe, input_shapes={"N": 1}, verify=False)
    assert first.to_bytes() == again.to_bytes()


def test_input_values_make_inputs_constant() -> None:
    x = RNG.standard_normal((1, 64), dtype=np.float32)
    program = sparsec.compile(DIGITS_MLP, input_values={"x": x}, name="fixed", input_shapes={})
    assert program.inputs == ()
    np.testing.assert_allclose(program.run({})["logits"], Reference(DIGITS_MLP).run({"x": x})["logits"], rtol=1e-4)


def test_benchmark_fills_in_the_report() -> None:
    program = sparsec.compile(DIGITS_MLP, input_shapes={"N": 1})
    timing = program.benchmark(seconds=0.05)
    assert set(timing.medians) == {"sparsec", "onnxruntime"}
    assert timing.rounds >= 5
    assert program.report.after.milliseconds == timing.medians["sparsec"] > 0
    assert program.report.before.ram_bytes is not None
    assert set(program.benchmark(against=None, seconds=0.0).medians) == {"sparsec"}
    with pytest.raises(InputError, match="ort"):
        program.benchmark(against="tflite")


def test_progress_names_stages_and_layers() -> None:
    seen: list[tuple[str, int, int, str]] = []
    sparsec.compile(DIGITS_MLP, recipe="int8", input_shapes={"N": 1}, progress=lambda *args: seen.append(args))
    stages = list(dict.fromkeys(row[0] for row in seen))
    assert stages[-4:] == ["compress", "encode", "kernels", "verify"]
    assert stages[:-4] in ([], ["simplify"])  # the cache may have it
    assert {"encode-weights", "hidden.weight"} <= {row[3] for row in seen}
    assert_each_goes_on_to_its_end(seen, stages)


def test_progress_of_calibration_counts_samples_and_layers() -> None:
    seen: list[tuple[str, int, int, str]] = []
    feeds = [{"x": RNG.standard_normal((1, 64), dtype=np.float32)} for _ in range(5)]
    recipe = {"rules": [{"scheme": "int4"}], "min_elements": 1}
    sparsec.compress(
        DIGITS_MLP, recipe, input_shapes={"N": 1}, calibration=feeds, verify=False, progress=lambda *args: seen.append(args)
    )  # fmt: skip
    weights = sum(stage == "encode" for stage, *_ in seen)
    calibrated = [row for row in seen if row[0] == "calibrate"]
    assert {total for stage, _, total, _ in seen if stage == "samples"} == {5}
    assert {total for _, _, total, _ in calibrated} == {weights}
    done = [done for _, done, _, _ in calibrated]  # layers that the cache knows are done at once
    assert done == sorted(done)
    assert done[-1] == weights
    assert any(detail.endswith(": sample 5 of 5") for *_, detail in calibrated)
    assert_each_goes_on_to_its_end(seen, ["samples", "compress", "calibrate", "encode"])


def assert_each_goes_on_to_its_end(seen: list[tuple[str, int, int, str]], stages: list[str]) -> None:
    for stage in stages:
        own = [(done, total) for name, done, total, _ in seen if name == stage]
        assert own == sorted(own)
        assert own[-1][0] == own[-1][1]


def test_debug_dump(tmp_path: Path) -> None:
    sparsec.compress(DIGITS_MLP, input_shapes={"N": 1}, debug_dump=tmp_path / "dump", verify=False)
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert names[0].startswith("01-")
    assert len(names) > 20
    assert onnx.load(tmp_path / "dump" / names[-1]).graph.node


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed")
@pytest.mark.skipif(runs_here(resolve_target("arm")), reason="this machine is an ARM")
def test_arm_program_runs_emulated(tmp_path: Path) -> None:
    program = sparsec.compile(DIGITS_MLP, "arm", recipe="int8", input_shapes={"N": 1})
    x = RNG.standard_normal((1, 64), dtype=np.float32)
    found = program.run({"x": x})["logits"]
    here = sparsec.compile(DIGITS_MLP, recipe="int8", input_shapes={"N": 1}).run({"x": x})["logits"]
    np.testing.assert_allclose(found, here, rtol=1e-4, atol=1e-4)
    loaded = sparsec.load(program.save(tmp_path / "arm"))
    assert np.array_equal(loaded.run([x])["logits"], found)
    for bad in ({"x": x[0]}, {"y": x}, [x, x], {"x": x.astype(np.float64)}):
        with pytest.raises(InputError, match=r"x: float32\[1, 64\]"):
            loaded.run(bad)
    with pytest.raises(TargetError, match="cannot be timed"):
        program.benchmark()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed")
@pytest.mark.parametrize("scheme", ["cb4-g32", "s16x1@50-cb4-g32", "vq2d4"])
def test_matrix_products_of_bytes_run_emulated(scheme: str) -> None:
    """The runtime finds the instructions it asks for; an odd number of rows."""
    program = sparsec.compile(DIGITS_MLP, "arm-i8mm", recipe=f"{scheme} x int8", input_shapes={"N": 5})
    x = RNG.standard_normal((5, 64), dtype=np.float32)
    here = sparsec.compile(DIGITS_MLP, recipe=f"{scheme} x int8", input_shapes={"N": 5}).run({"x": x})["logits"]
    np.testing.assert_allclose(program.run({"x": x})["logits"], here, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "name"),
    [("MobileNet-v2 1.0", "mobilenet_v2_1_0"), ("20", "m_20"), ("", "model"), ("Größe", "gr_e"), ("__x", "x")],
)
def test_c_names(text: str, name: str) -> None:
    assert c_name(text) == name


def test_default_names() -> None:
    assert default_name("dir/a-b.onnx") == "a_b"
    assert default_name(onnx.ModelProto()) == default_name(b"") == "model"
