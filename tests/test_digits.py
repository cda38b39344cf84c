"""The tests' own models: the files are what make_digits.py says they are."""

import collections

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.models import DIGITS, DIGITS_MLP, accuracy, held_out


def run(model: str | bytes, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model).run(None, {"x": x})[0]


@pytest.mark.parametrize(("path", "shape"), [(DIGITS, (-1, 1, 8, 8)), (DIGITS_MLP, (-1, 64))])
def test_accuracy_on_held_out_digits(path, shape):
    images, labels = held_out()
    assert len(images) == 360
    assert accuracy(run(str(path), images.reshape(shape)), labels) > 0.95
    assert path.stat().st_size < 100_000


def test_operators_are_those_the_passes_must_handle():
    ops = collections.Counter(node.op_type for node in onnx.load(DIGITS).graph.node)
    assert ops["BatchNormalization"] == ops["Conv"] == 4
    assert {"Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"} <= set(ops)


def test_onnx_writer_equals_torch():
    torch = pytest.importorskip("torch")
    from bench.zoo.vision import randomise
    from tests.models.make_digits import Cnn, Mlp, cnn_to_onnx, mlp_to_onnx

    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for module, convert, flat in ((Cnn(), cnn_to_onnx, False), (Mlp(), mlp_to_onnx, True)):
        randomise(module, seed=7)
        with torch.no_grad():
            expected = module(x).numpy()
        got = run(convert(module).SerializeToString(), (x.flatten(1) if flat else x).numpy())
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_reaches_the_accuracy_again():
    torch = pytest.importorskip("torch")
    from tests.models import digits
    from tests.models.make_digits import Mlp, train

    (images, labels), (test_images, test_labels) = digits()
    torch.manual_seed(3)
    model = train(Mlp(), torch.from_numpy(images), torch.from_numpy(labels))
    with torch.no_grad():
        assert accuracy(model(torch.from_numpy(test_images)).numpy(), test_labels) > 0.95
