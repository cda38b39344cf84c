"""Fixtures of the tests of GPU code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec import api
from tests.cuda.driver import FakeGpu, fake_driver


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh random numbers for every test."""
    return np.random.default_rng()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """A simulated sm_90 in place of a GPU; whatever a test makes on it must be gone at its end."""
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    monkeypatch.setenv("SPC_CUDA_DRIVER", str(fake_driver()))
    monkeypatch.setenv("SPC_FAKE_KERNELS", str(kernels))
    made = FakeGpu(fake_driver(), kernels)
    before = made.live
    yield made
    assert made.live == before, f"{made.live - before} objects of the GPU were not given back"


@pytest.fixture
def simulated(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A simulated GPU that knows the kernels of whatever is compiled."""
    build: Callable[..., Any] = api.build

    def known(*arguments: Any) -> Any:
        made = build(*arguments)
        gpu.add(made)
        return made

    monkeypatch.setattr(api, "build", known)
    return gpu
