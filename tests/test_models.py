"""Real models through the whole compiler: every zoo model, dense and compressed, on this host and on ARM under qemu-user.

`compile` verifies by itself (dense: 1e-4 relative to onnxruntime on the original; compressed: 1e-3 to the portable ONNX in
stock onnxruntime) and raises beyond the bound; the tests run the verified program again on other inputs.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from bench.zoo import MODELS, MissingData, ZooModel, get
from sparsec.compiled import CompiledModel

SCHEMES = ["fp32", "int8", "cb4-g32", "s50", "s2:4", "s16x1@50-cb4-g32"]
ARM_SCHEMES = ["fp32", "cb4-g32", "s16x1@50-cb4-g32"]
LARGE = ("resnet50_random", "minilm_hf")
"""A minute and more under qemu: once each, since their operators are those of resnet20, mobilenet_v2 and minilm."""
ARM_CASES = [(n, s) for n in MODELS for s in (ARM_SCHEMES if n not in LARGE else ARM_SCHEMES[-1:])]
MEASURED = ["mobilenet_v1", "resnet20", "kws", "resnet8", "mnist", "silero_vad"]

pytestmark = pytest.mark.slow


def model(name: str) -> ZooModel:
    """The zoo model, or a skip that says what is missing."""
    try:
        return get(name)
    except MissingData as missing:
        pytest.skip(str(missing))


def compiled(zoo: ZooModel, scheme: str, target: str) -> CompiledModel:
    """Compiled from the ONNX file, verified on random inputs that fit the model."""
    return zoo.compile(scheme, target, verify=True, inputs=zoo.random_inputs(1), jobs=2)


def relative(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """max |a - b| / max |b|."""
    return float(np.abs(found.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-9))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", list(MODELS))
def test_on_this_host(name: str, scheme: str) -> None:
    zoo = model(name)
    program = compiled(zoo, scheme, "cpu")
    if scheme == "fp32":
        feed = zoo.random_inputs(2)
        for found, wanted in zip(program.run(feed).values(), zoo.reference_run()(feed), strict=True):
            assert relative(found, wanted) <= 1e-4


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed")
@pytest.mark.parametrize(("name", "scheme"), ARM_CASES)
def test_on_arm_under_emulation(name: str, scheme: str) -> None:
    compiled(model(name), scheme, "arm")


@pytest.mark.parametrize("name", MEASURED)
def test_dense_program_scores_like_the_original(name: str) -> None:
    zoo = model(name)
    assert zoo.metric is not None
    program = compiled(zoo, "fp32", "cpu")
    assert zoo.metric(lambda feed: list(program.run(feed).values()), 200) == pytest.approx(
        zoo.metric(zoo.reference_run(), 200), abs=1e-4
    )
