"""The zoo: one function per model. Reference scores are measured with onnxruntime on CPU, all examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import data
from .base import Array, Feed, MissingData, Run, ZooModel, data_path, from_module, in_order
from .metrics import Accuracy, Perplexity, Spearman, SpeechShare

if TYPE_CHECKING:
    import torch

Examples = Callable[[], Iterator[tuple[Feed, int]]]
STORY_TOKENS = 256
CACHE_SLOTS = 256
SENTENCE_TOKENS = 128
STORIES = 200


def _feeds(examples: Examples) -> Callable[[], Iterator[Feed]]:
    return lambda: (feed for feed, _ in examples())


def _chw(image: Array) -> Array:
    """[H, W, 3] -> float32 [1, 3, H, W]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)


def _classifier(
    name: str, file: str, input_name: str, shape: tuple[int, ...], examples: Examples | None, reference: float
) -> ZooModel:
    """An ONNX classifier with one input and, where there is labelled data, its accuracy."""
    return ZooModel(
        name,
        path=data_path(file),
        input_shapes={input_name: shape},
        real=_feeds(examples) if examples else None,
        metric=Accuracy(examples, reference) if examples else None,
    )


def _imagenet(name: str, size: int, prepare: Callable[[Array], Array], first_class: int = 0) -> Examples:
    """Prepared ImageNet examples; `first_class` is the output index of ImageNet's class 0."""
    return lambda: (({name: prepare(image)}, label + first_class) for image, label in data.imagenet(size))


def _signed(image: Array) -> Array:
    """x / 127.5 - 1, the MobileNets' preprocessing."""
    return _chw(image) / np.float32(127.5) - np.float32(1)


def mobilenet_v1() -> ZooModel:
    """MobileNet v1 0.25 at 128x128; x / 127.5 - 1, RGB. Measured: top-1 50.0 % of 650."""
    file = "mobilenet/mobilenet_v1_0.25_128_quant_deq.onnx"
    examples = _imagenet("t0", 128, _signed, first_class=1)  # output 0 is "background"
    return _classifier("mobilenet_v1", file, "t0", (1, 3, 128, 128), examples, 50.0)


def mobilenet_v2() -> ZooModel:
    """MobileNet v2 1.0 at 224x224; x / 127.5 - 1, RGB. Measured: top-1 78.46 % of 650."""
    file = "mobilenet/mobilenet_v2_1.0_224_quant_deq.onnx"
    examples = _imagenet("t0", 224, _signed, first_class=1)  # output 0 is "background"
    return _classifier("mobilenet_v2", file, "t0", (1, 3, 224, 224), examples, 78.4615)


def squeezenet() -> ZooModel:
    """SqueezeNet, Deep Compression decoded to fp32; BGR minus the Caffe mean. Measured: 71.08 % of 650."""

    def prepare(image: Array) -> Array:
        return _chw(image[:, :, ::-1]) - np.array([104, 117, 123], np.float32)[None, :, None, None]

    file = "squeezenet_dc/squeezenet_dc_fp32.onnx"
    return _classifier("squeezenet", file, "data", (1, 3, 227, 227), _imagenet("data", 227, prepare), 71.0769)


def _cifar_normalised() -> Iterator[tuple[Feed, int]]:
    mean = np.array([0.485, 0.456, 0.406], np.float32)[None, :, None, None]
    std = np.array([0.229, 0.224, 0.225], np.float32)[None, :, None, None]
    for image, label in data.cifar10():
        yield {"x": (_chw(image) / np.float32(255) - mean) / std}, label


def _cifar(name: str, depth: int, file: str, reference: float) -> ZooModel:
    import torch

    from . import vision

    return from_module(
        name,
        vision.cifar_resnet(depth, data_path(file)),
        {"x": torch.zeros(1, 3, 32, 32)},
        output_names=("logits",),
        real=_feeds(_cifar_normalised),
        metric=Accuracy(_cifar_normalised, reference),
    )


def resnet20() -> ZooModel:
    """ResNet-20 for CIFAR-10, from torch. Measured: 81.00 % of 5000 JPEGs."""
    return _cifar("resnet20", 20, "cifar10/resnet20-12fca82f.th", 81.0)


def resnet56() -> ZooModel:
    """ResNet-56 for CIFAR-10, from torch. Measured: 83.12 % of 5000 JPEGs."""
    return _cifar("resnet56", 56, "cifar10/resnet56-4bfd9763.th", 83.12)


def kws() -> ZooModel:
    """MLPerf Tiny keyword spotting (DS-CNN) on 49x10 MFCC. Measured: 89.8 % of 500."""

    def examples() -> Iterator[tuple[Feed, int]]:
        return (({"t0": mfcc[None, None]}, label) for mfcc, label in data.kws())

    return _classifier("kws", "mlperf_tiny/kws_fp32.onnx", "t0", (1, 1, 49, 10), examples, 89.8)


def vww() -> ZooModel:
    """MLPerf Tiny visual wake words (MobileNet 0.25 at 96x96); no labelled data. Real inputs: image / 255."""
    model = _classifier("vww", "mlperf_tiny/vww_fp32.onnx", "t0", (1, 3, 96, 96), None, 0)
    model.real = lambda: ({"t0": _chw(image) / np.float32(255)} for image, _ in data.imagenet(96))
    return model


def resnet8() -> ZooModel:
    """MLPerf Tiny ResNet-8 for CIFAR-10; pixels 0..255 as they are. Measured: 75.24 % of 5000 JPEGs."""

    def examples() -> Iterator[tuple[Feed, int]]:
        return (({"t0": _chw(image)}, label) for image, label in data.cifar10())

    return _classifier("resnet8", "mlperf_tiny/resnet8_fp32.onnx", "t0", (1, 3, 32, 32), examples, 75.24)


def mnist() -> ZooModel:
    """The ONNX model zoo's MNIST CNN (opset 8); pixels 0..255. Measured: 98.1 % of 3000."""

    def examples() -> Iterator[tuple[Feed, int]]:
        return (({"Input3": image[None, None].astype(np.float32)}, label) for image, label in data.mnist())

    return _classifier("mnist", "onnx_small/mnist.onnx", "Input3", (1, 1, 28, 28), examples, 98.1)


def silero_vad() -> ZooModel:
    """Silero voice activity detector at 16 kHz, LSTM state in and out.

    One step takes 576 samples: 64 of context from the step before, then 512 new ones (without the context it
    hears no speech at all). Measured: 77.44 % of 1875 chunks hold speech.
    """

    def chunks() -> Iterator[Array]:
        samples = np.concatenate([np.zeros(64, np.float32), data.speech()])
        for start in range(0, len(samples) - 575, 512):
            yield samples[None, start : start + 576]

    metric = SpeechShare(chunks, (2, 1, 128), 77.44)
    zeros = np.zeros((2, 1, 128), np.float32)
    return ZooModel(
        "silero_vad",
        path=data_path("onnx_small/silero_vad_16k_op15.onnx"),
        input_shapes={"input": (1, 576), "state": (2, 1, 128)},
        input_values={"sr": np.array(16000, np.int64)},
        real=lambda: ({"input": chunk, "state": zeros} for chunk in chunks()),
        metric=metric,
    )


def basic_pitch() -> ZooModel:
    """Spotify's basic-pitch (note transcription) on 43844 samples; three outputs; no labelled data."""
    name = "serving_default_input_2:0"

    def real() -> Iterator[Feed]:
        samples = data.speech()
        for start in range(0, len(samples) - 43843, 43844):
            yield {name: np.ascontiguousarray(samples[None, start : start + 43844, None])}

    path = data_path("onnx_small/nmp.onnx")
    return ZooModel("basic_pitch", path=path, input_shapes={name: (1, 43844, 1)}, real=real)


def _story_ids() -> Iterator[list[int]]:
    """Tokens of the first stories, BOS first, at most STORY_TOKENS each."""
    tokenizer = data.Tokenizer512(data_path("stories260k/tok512.bin"))
    return (tokenizer.encode(text)[:STORY_TOKENS] for text in data.stories()[:STORIES])


def _padded(ids: list[int]) -> Feed:
    # Causal attention: what follows a token cannot change its logits, so any padding will do.
    return {"tokens": np.array([ids + [0] * (STORY_TOKENS - len(ids))], np.int64)}


def story_windows(count: int) -> list[Feed]:
    """The first STORY_TOKENS tokens of up to `count` stories that have so many, none of them among the first 60."""
    tokenizer = data.Tokenizer512(data_path("stories260k/tok512.bin"))
    found = (tokenizer.encode(story)[:STORY_TOKENS] for story in data.stories()[60:])
    return [_padded(ids) for ids in islice((ids for ids in found if len(ids) == STORY_TOKENS), count)]


def stories_prefill() -> ZooModel:
    """stories260K (Llama) over 256 tokens without a cache. Measured: perplexity 3.4742, 200 stories."""
    import torch

    from . import llama

    return from_module(
        "stories_prefill",
        llama.load(llama.Prefill, data_path("stories260k/stories260K.bin")),
        {"tokens": torch.zeros(1, STORY_TOKENS, dtype=torch.int64)},
        output_names=("logits",),
        integer_ranges={"tokens": (0, 512)},
        real=lambda: (_padded(ids) for ids in _story_ids()),
        metric=Perplexity(_story_ids, lambda run, ids: in_order(run(_padded(ids)))[0][0, : len(ids) - 1], 3.47422),
    )


def stories_decode() -> ZooModel:
    """stories260K, one token with its KV cache in and out. Measured: perplexity 3.4742, 200 stories."""
    import torch

    from . import llama

    module = llama.load(llama.Decode, data_path("stories260k/stories260K.bin"))
    shape = (1, module.c.kv_heads, CACHE_SLOTS, module.c.head_dim)
    names = [f"caches_{i}" for i in range(2 * module.c.layers)]  # as forward names its arguments

    def empty() -> Feed:
        return {name: np.zeros(shape, np.float32) for name in names}

    def steps(run: Run, ids: list[int]) -> Array:
        caches, logits = empty(), []
        for position, token in enumerate(ids[:-1]):
            feed = {"token": np.array([[token]], np.int64), "position": np.array([position], np.int64)}
            row, *updated = in_order(run({**feed, **caches}))
            caches = dict(zip(names, updated, strict=True))
            logits.append(row[0])
        return np.stack(logits)

    def real() -> Iterator[Feed]:
        for ids in _story_ids():
            yield {"token": np.array([[ids[0]]], np.int64), "position": np.array([0], np.int64), **empty()}

    return from_module(
        "stories_decode",
        module,
        {
            "token": torch.zeros(1, 1, dtype=torch.int64),
            "position": torch.zeros(1, dtype=torch.int64),
            **{name: torch.zeros(shape) for name in names},
        },
        output_names=("logits", *(f"updated_{i}" for i in range(len(names)))),
        integer_ranges={"token": (0, 512), "position": (0, CACHE_SLOTS)},
        real=real,
        metric=Perplexity(_story_ids, steps, 3.47422),
    )


def _minilm_parts() -> tuple[Path, Callable[[str], Feed]]:
    """The model's folder and a function from a sentence to its inputs."""
    from examples import minilm_model

    try:
        folder = minilm_model.model_folder()
    except ModuleNotFoundError as error:
        raise MissingData(str(error)) from None
    return folder, minilm_model.Tokenizer(folder, SENTENCE_TOKENS).feed


def _minilm(name: str, build: Callable[[Path], torch.nn.Module]) -> ZooModel:
    import torch

    folder, feed = _minilm_parts()

    def prefix_mask(inputs: Feed) -> Feed:
        length = int(inputs["attention_mask"].sum()) or 1  # a real mask is ones, then zeros
        inputs["attention_mask"] = (np.arange(SENTENCE_TOKENS) < length).astype(np.int64)[None]
        return inputs

    blank = torch.ones(1, SENTENCE_TOKENS, dtype=torch.int64)
    return from_module(
        name,
        build(folder),
        {"input_ids": blank, "attention_mask": blank.clone()},
        output_names=("sentence",),
        integer_ranges={"input_ids": (0, 30522), "attention_mask": (0, 2)},
        constrain=prefix_mask,
        real=lambda: (feed(a) for a, _, _ in data.stsb()),
        metric=Spearman(lambda: ((feed(a), feed(b), score) for a, b, score in data.stsb()), 0.86716),
    )


def minilm() -> ZooModel:
    """all-MiniLM-L6-v2 at 128 tokens, mean pooled, unit length. Measured: STS-B dev Spearman 0.8672 (1500 pairs)."""
    from examples import minilm_model

    return _minilm("minilm", minilm_model.load)


def minilm_hf() -> ZooModel:
    """The same from Hugging Face's BertModel (eager attention), whose graph is less tidy. Measured: as `minilm`."""
    import torch

    class Sentence(torch.nn.Module):
        def __init__(self, folder: Path) -> None:
            super().__init__()
            from transformers import AutoModel

            self.bert = AutoModel.from_pretrained(folder, attn_implementation="eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            kept = attention_mask[:, :, None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1))

    return _minilm("minilm_hf", Sentence)


def resnet50_random() -> ZooModel:
    """ResNet-50 at 224x224 with random weights, for timing (needs no data)."""
    import torch

    from . import vision

    module = vision.randomise(vision.ResNet50(), seed=50)
    inputs = {"x": torch.zeros(1, 3, 224, 224)}
    return from_module("resnet50_random", module, inputs, output_names=("logits",))


def mobilenet_v2_random() -> ZooModel:
    """MobileNetV2 1.0 at 224x224 with random weights, for timing (needs no data)."""
    import torch

    from . import vision

    module = vision.randomise(vision.MobileNetV2(), seed=2)
    inputs = {"x": torch.zeros(1, 3, 224, 224)}
    return from_module("mobilenet_v2_random", module, inputs, output_names=("logits",))


MODELS: dict[str, Callable[[], ZooModel]] = {
    builder.__name__: builder
    for builder in (
        mobilenet_v1,
        mobilenet_v2,
        squeezenet,
        resnet20,
        resnet56,
        kws,
        vww,
        resnet8,
        mnist,
        silero_vad,
        basic_pitch,
        stories_prefill,
        stories_decode,
        minilm,
        minilm_hf,
        resnet50_random,
        mobilenet_v2_random,
    )
}
"""Every model by name."""


@cache
def get(name: str) -> ZooModel:
    """The model of that name, built once per process.

    Raises:
        KeyError: no such model.
        MissingData: a file of the model is not there.
    """
    if name not in MODELS:
        raise KeyError(f"{name}: not in the zoo; it has {', '.join(MODELS)}")
    return MODELS[name]()
