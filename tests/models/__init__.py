"""The tests' own models, trained on scikit-learn's bundled digits by make_digits.py; they need no data folder.

digits.onnx: input "x" float32 [N, 1, 8, 8] in 0..1, output "logits" [N, 10]. 3x3 convolution, BatchNormalization,
    depthwise separable block, residual block, GlobalAveragePool, Gemm.
digits_mlp.onnx: input "x" float32 [N, 64] in 0..1, output "logits" [N, 10]. Two layers of MatMul and Add.
N is symbolic: bind it with input_shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGITS = Path(__file__).with_name("digits.onnx")
DIGITS_MLP = Path(__file__).with_name("digits_mlp.onnx")

Split = tuple[NDArray[np.float32], NDArray[np.int64]]


def digits() -> tuple[Split, Split]:
    """(train, held-out) images [N, 1, 8, 8] in 0..1 with labels; 360 of the 1797 images are held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    a, b, c, d = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    return (a, c), (b, d)


def held_out() -> Split:
    """The images [360, 1, 8, 8] and labels that training did not see; flatten the images for digits_mlp."""
    return digits()[1]


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of rows whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())
