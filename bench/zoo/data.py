"""Readers of the labelled data below SPARSEC_DATA. Readers are generators: only what is asked for is decoded.

Sets that are stored class by class are shuffled with a fixed seed, so the first n examples are a fair sample.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import struct
import tarfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .base import data_path

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


def imagenet(size: int | None = None) -> Iterator[tuple[Image, int]]:
    """650 ImageNet validation images [size, size, 3] RGB (227 unless resized, bilinear), labels 0..999."""
    from PIL import Image as Pil

    root = data_path("imagenet_val650")
    for line in (root / "labels.txt").read_text().split("\n"):
        if not line:
            continue
        name, label = line.rsplit(" ", 1)
        with Pil.open(root / name) as picture:
            rgb = picture.convert("RGB")
            if size is not None and rgb.size != (size, size):
                rgb = rgb.resize((size, size), Pil.Resampling.BILINEAR)
            yield np.asarray(rgb), int(label)


CIFAR_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]  # alphabetical order is label order


def cifar10() -> Iterator[tuple[Image, int]]:
    """5000 CIFAR-10 test images [32, 32, 3] RGB (JPEG re-encoded), shuffled, and labels 0..9."""
    from PIL import Image as Pil

    with tarfile.open(data_path("cifar10/cifar10_jpeg_half.tar.gz")) as archive:
        members = sorted((m for m in archive.getmembers() if m.isfile()), key=lambda m: m.name)
        blobs = {m.name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]
    names = sorted(blobs)
    random.Random(0).shuffle(names)
    for name in names:
        with Pil.open(io.BytesIO(blobs[name])) as picture:
            yield np.asarray(picture.convert("RGB")), CIFAR_CLASSES.index(name.split("/")[-2])


def kws() -> Iterator[tuple[Floats, int]]:
    """500 MFCC maps [49, 10] of words, dequantised as (q - 83) * 0.58470, shuffled, and labels 0..11."""
    with tarfile.open(data_path("mlperf_tiny/kws_mfcc_500.tar.gz")) as archive:
        members = {m.name: m for m in archive.getmembers() if m.name.endswith(".bin")}
        blobs = {name: archive.extractfile(m).read() for name, m in members.items()}  # type: ignore[union-attr]
    names = sorted(blobs)
    random.Random(0).shuffle(names)
    for name in names:
        q = np.frombuffer(blobs[name], np.int8).reshape(49, 10)
        yield (q.astype(np.float32) - 83) * np.float32(0.58470), int(name.rsplit("_", 1)[1].split(".")[0])


def mnist() -> Iterator[tuple[Image, int]]:
    """3000 MNIST test digits [28, 28], white on black, and labels."""
    from PIL import Image as Pil

    with Pil.open(data_path("onnx_small/mnist/b20.png")) as picture:
        rows = np.asarray(picture)
    text = data_path("onnx_small/mnist/labels.js").read_text()
    labels = json.loads(text[text.index("[") : text.index("]") + 1])[60000:63000]
    for row, label in zip(rows, labels, strict=True):
        yield row.reshape(28, 28), int(label)


def stsb() -> list[tuple[str, str, float]]:
    """STS-B development pairs (sentence, sentence, similarity 0..5), shuffled with a fixed seed."""
    with data_path("stsb/stsb-en-dev.csv").open(newline="", encoding="utf-8") as file:
        rows = [(a, b, float(score)) for a, b, score in csv.reader(file)]
    random.Random(0).shuffle(rows)
    return rows


def speech() -> Floats:
    """60 s of speech with pauses: mono, 16 kHz, float32 in [-1, 1)."""
    with wave.open(str(data_path("onnx_small/test.wav"))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16000, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return samples.astype(np.float32) / np.float32(32768)


def stories() -> list[str]:
    """The stories of the TinyStories development text, in order.

    Nothing in the text parts them: one begins with the paragraph that opens as most do. Those that open otherwise follow the
    story before them.
    """
    text = data_path("stories260k/tinystories_dev.txt").read_text(encoding="utf-8")
    found = re.split(r"\n\n+(?=Once upon a time|Once there|There once)", text)
    return [story.strip() for story in found[1:]]  # the text begins within a story


class Tokenizer512:
    """The SentencePiece-like BPE of llama2.c (tok512.bin: longest length, then score, length, bytes each)."""

    BOS = 1

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        self.pieces: dict[bytes, int] = {}
        self.scores: list[float] = []
        offset = 4
        while offset < len(raw):
            score, length = struct.unpack_from("<fi", raw, offset)
            offset += 8
            self.pieces.setdefault(raw[offset : offset + length], len(self.scores))
            self.scores.append(score)
            offset += length
        self.bytes = {i: piece for piece, i in self.pieces.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids with a leading BOS."""
        # No piece holds a space after its first character, so words can be merged one by one.
        return [self.BOS, *(i for word in re.findall(r" [^ ]*", " " + text) for i in self._word(word))]

    def _word(self, word: str) -> list[int]:
        """Merge the best-scored neighbouring pair until none is left; unknown characters become bytes."""
        ids: list[int] = []
        for char in word:
            piece = char.encode()
            ids += [self.pieces[piece]] if piece in self.pieces else [b + 3 for b in piece]
        while True:
            best, at, token = -1e30, -1, -1
            for i in range(len(ids) - 1):
                pair = self.pieces.get(self.bytes.get(ids[i], b"") + self.bytes.get(ids[i + 1], b""))
                if pair is not None and self.scores[pair] > best:
                    best, at, token = self.scores[pair], i, pair
            if at < 0:
                return ids
            ids[at : at + 2] = [token]
