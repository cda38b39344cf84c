"""The model zoo: its models load, run, and score what their authors' models score."""

import numpy as np
import pytest

from bench.zoo import MODELS, MissingData, ZooModel, get
from bench.zoo.base import data_path
from bench.zoo.metrics import Accuracy, Perplexity, Spearman, negative_log_likelihood

FROM_TORCH = [
    "resnet20",
    "resnet56",
    "stories_prefill",
    "stories_decode",
    "minilm",
    "minilm_hf",
    "resnet50_random",
    "mobilenet_v2_random",
]
FROM_FILE = [name for name in MODELS if name not in FROM_TORCH]
# Examples that take about a second, and how far a sample of that size may lie from the whole set's score.
SAMPLES = {
    "mobilenet_v1": (130, 12),
    "mobilenet_v2": (40, 20),
    "squeezenet": (40, 20),
    "kws": (500, 0.01),
    "resnet8": (500, 6),
    "mnist": (3000, 0.05),
    "silero_vad": (1875, 0.1),
}


def model_or_skip(name: str) -> ZooModel:
    try:
        return get(name)
    except MissingData as missing:
        pytest.skip(str(missing))


def test_missing_data_says_which_file_and_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEC_DATA", raising=False)
    with pytest.raises(MissingData, match=r"a/b\.onnx.*SPARSEC_DATA"):
        data_path("a/b.onnx")
    monkeypatch.setenv("SPARSEC_DATA", str(tmp_path))
    with pytest.raises(MissingData, match=r"a/b\.onnx: not found"):
        data_path("a/b.onnx")


def test_unknown_name_lists_the_zoo():
    with pytest.raises(KeyError, match="mobilenet_v1"):
        get("mobilenet_v9")


@pytest.mark.parametrize("name", FROM_FILE)
def test_file_runs_on_random_and_real_inputs(name):
    model = model_or_skip(name)
    run = model.reference_run()
    feed = model.random_inputs(seed=1)
    assert {k: v.shape for k, v in feed.items()} == model.input_shapes
    outputs = run(feed)
    assert all((np.isfinite(y).all() and y.std() > 0) or y.size == 1 for y in outputs)
    assert not np.array_equal(outputs[0], run(model.random_inputs(seed=2))[0])
    (real,) = model.real_inputs(1)
    assert {k: v.shape for k, v in real.items()} == model.input_shapes
    assert all(v.dtype == np.float32 for v in real.values())
    run(real)


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_TORCH)
def test_export_equals_torch(name):
    model = model_or_skip(name)
    graph_inputs = {v.name: tuple(v.shape) for v in model.onnx().graph.inputs}
    assert graph_inputs == model.input_shapes
    feed = model.random_inputs(seed=1)
    got, expected = model.reference_run()(feed), model.torch_run()(feed)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("name", SAMPLES)
def test_metric_of_the_original(name):
    model = model_or_skip(name)
    n, tolerance = SAMPLES[name]
    assert model.metric(model.reference_run(), n) == pytest.approx(model.metric.reference, abs=tolerance)


def test_cifar_metric_with_torch():
    model = model_or_skip("resnet20")
    assert model.metric(model.torch_run(), 100) == pytest.approx(model.metric.reference, abs=10)


def test_perplexity_of_prefill_and_decode_agree():
    prefill, decode = model_or_skip("stories_prefill"), model_or_skip("stories_decode")
    assert prefill.metric(prefill.torch_run(), 20) == pytest.approx(prefill.metric.reference, abs=0.4)
    one = prefill.metric(prefill.torch_run(), 1)
    assert decode.metric(decode.torch_run(), 1) == pytest.approx(one, rel=1e-4)


def test_minilm_ranks_sentences():
    model = model_or_skip("minilm")
    try:
        score = model.metric(model.torch_run(), 12)
    except MissingData as missing:
        pytest.skip(str(missing))
    assert score > 0.75


def test_minilm_equals_the_published_implementation():
    pytest.importorskip("transformers")
    model, published = model_or_skip("minilm"), model_or_skip("minilm_hf")
    feed = model.random_inputs(seed=5)
    np.testing.assert_allclose(model.torch_run()(feed)[0], published.torch_run()(feed)[0], atol=1e-5)


def test_metrics_against_hand_computed_values():
    def run(feed):
        return [feed["x"]]

    def examples():
        for hot in (0, 1, 2, 2):
            yield {"x": np.eye(3, dtype=np.float32)[hot]}, min(hot, 1)

    assert Accuracy(examples, 0)(run) == 50
    assert Accuracy(examples, 0)(run, 3) == pytest.approx(200 / 3)

    def pairs():
        for angle, score in ((0.0, 5.0), (0.5, 3.0), (1.0, 4.0), (1.5, 0.0)):
            b = np.array([[np.cos(angle), np.sin(angle)]], np.float32)
            yield {"x": np.array([[1, 0]], np.float32)}, {"x": b}, score

    assert Spearman(pairs, 0)(run) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)

    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    nll = negative_log_likelihood(logits + 7, [0, 2])
    np.testing.assert_allclose(nll, -np.log([0.5, 0.1]))
    uniform = Perplexity(lambda: [[1, 2, 0], [1, 1]], lambda run, ids: np.zeros((len(ids) - 1, 3)), 0)
    assert uniform(run) == pytest.approx(3)
