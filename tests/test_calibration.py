"""Calibration inputs in every form, and what is refused; a calibrated model beats a data-free one on real digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.calibration import calibration_samples
from sparsec.cli import main
from sparsec.errors import CalibrationError, RecipeError
from sparsec.reference import Reference
from tests.models import DIGITS, DIGITS_MLP, accuracy, digits
from tests.passes.calibrate.networks import text_network


def feeds(count: int = 5) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((1, 8, 12)).astype(np.float32)} for _ in range(count)]


def read(source: Any, most: int = 100) -> np.ndarray:
    return np.concatenate([feed["x"] for feed in calibration_samples(source, text_network(), most)])


def test_every_form_gives_the_same_samples(tmp_path: Path) -> None:
    given = feeds()
    wanted = np.concatenate([feed["x"] for feed in given])
    np.savez(tmp_path / "a.npz", x=wanted)
    np.savez(tmp_path / "b.npz", x=wanted[:, None])
    arrays = [feed["x"] for feed in given]
    forms: list[Any] = [
        given, iter(given), lambda: iter(given), arrays, [[a] for a in arrays], {"x": wanted}, {"x": wanted[:, None]},
        tmp_path / "a.npz", str(tmp_path / "b.npz"),
    ]  # fmt: skip
    for form in forms:
        assert np.array_equal(read(form), wanted)
    assert np.array_equal(read(given, 2), wanted[:2])
    assert read([{"x": wanted[:1].astype(np.float64)}]).dtype == np.float32


def test_progress_of_reading_knows_the_number_where_the_source_does() -> None:
    given = feeds()
    side_by_side = {"x": np.concatenate([feed["x"] for feed in given])}
    for source, most, totals in (
        (given, None, [5]), (given, 3, [3]), (iter(given), None, [5]), (side_by_side, 4, [4]), ((f for f in given), None, [0, 5]),
    ):  # fmt: skip
        seen: list[tuple[str, int, int, str]] = []
        found = calibration_samples(source, text_network(), most, progress=lambda *args, seen=seen: seen.append(args))
        assert [done for _, done, _, _ in seen] == [*range(len(found)), len(found)]
        assert list(dict.fromkeys(total for _, _, total, _ in seen)) == totals


def test_no_more_samples_are_read_than_needed() -> None:
    def endless() -> Any:
        while True:
            yield feeds(1)[0]

    assert len(calibration_samples(endless, text_network(), 7)) == 7


BAD = [
    ([], "there is no sample"),
    ([{"z": np.zeros((1, 8, 12), np.float32)}], "'x' is missing; 'z' is no input"),
    (
        [{"x": np.zeros((1, 8, 13), np.float32)}],
        r"sample 0: 'x' has the shape \[1, 8, 13\], the model takes \[1, 8, 12\]",
    ),
    ([*feeds(1), {"x": np.full((1, 8, 12), np.nan, np.float32)}], "sample 1: 'x' holds NaN or Inf"),
    ([{"x": np.zeros((1, 8, 12), np.int64)}], "'x' is int64, the model takes float32"),
    ([[np.zeros((1, 8, 12)), np.zeros(3)]], "has 2 arrays; the model has 1 inputs: x"),
    ({"x": np.zeros((5, 7, 12), np.float32)}, r"'x' is \[5, 7, 12\]; samples of \[1, 8, 12\]"),
    ({"y": np.zeros((5, 8, 12), np.float32)}, "'x' is missing"),
    (3, "found int"),
    ("no.npz", None),
]


@pytest.mark.parametrize(("source", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_inputs(source: Any, message: str | None) -> None:
    with pytest.raises(sparsec.SparsecError, match=message or "no such file") as caught:
        calibration_samples(source, text_network(), 10)
    assert message is None or isinstance(caught.value, CalibrationError)


def test_algorithms_that_need_inputs_say_so() -> None:
    recipe = {"version": 1, "rules": [{"scheme": "int4", "quantize": {"algorithm": "gptq"}}]}
    with pytest.raises(RecipeError, match=r"rules\[0\].quantize.algorithm: 'gptq' needs calibration inputs"):
        sparsec.compress(DIGITS_MLP, recipe, input_shapes={"N": 1})


@pytest.mark.parametrize("model", [DIGITS, DIGITS_MLP], ids=["convolutions", "products"])
@pytest.mark.parametrize("scheme", ["cb2-c", "s2:4-int3", "s70"])
def test_calibrated_models_are_better(model: Path, scheme: str, tmp_path: Path) -> None:
    """Nearer to the original's logits on digits that nobody has seen; through the command line too."""
    (training, _), (images, labels) = digits()
    flat = model == DIGITS_MLP
    shape = (1, 64) if flat else (1, 1, 8, 8)
    inputs = {"input_shapes": {"x": list(shape)}, "verify": False}
    np.savez(tmp_path / "digits.npz", x=training[:64].reshape(-1, *shape[1:]))
    free = sparsec.compress(model, scheme, **inputs)
    calibrated = sparsec.compress(model, scheme, calibration=tmp_path / "digits.npz", **inputs)
    assert all((row.record.output_error is None) == (row.record.scheme == "fp32") for row in calibrated.report.layers)
    assert len(calibrated.to_bytes()) < len(free.to_bytes()) + 4096  # biases that were not there
    feeds = images.reshape(-1, *shape)[:150]

    def logits(source: Any) -> np.ndarray:
        reference = Reference(source)
        return np.concatenate([reference.run({"x": feed})["logits"] for feed in feeds])

    original = logits(model)
    errors = [np.square(logits(m.model) - original).sum() for m in (calibrated, free)]
    assert errors[0] < 0.9 * errors[1]
    assert accuracy(logits(calibrated.model), labels[:150]) >= accuracy(logits(free.model), labels[:150]) - 0.03
    arguments = ["compress", str(model), str(tmp_path / "out.onnx"), "--recipe", scheme, "--no-verify"]
    arguments += ["--input-shapes", "x=" + "x".join(map(str, shape)), "--calibration", str(tmp_path / "digits.npz")]
    assert main(arguments) == 0
    assert (tmp_path / "out.onnx").read_bytes() == calibrated.to_bytes()
