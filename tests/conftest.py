"""Settings for all tests; fresh random inputs that can be repeated.

``np.random.default_rng()`` without a seed gives other numbers in every run. A failed test names its run's seed,
``pytest --seed N`` repeats them.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from sparsec.codegen import zig

# Several test processes share the cores: torch and OpenMP with one thread each finish sooner than with all.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that call zig themselves use the same cache as the tool chain.
os.environ.update(zig.environment())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="seed of the random inputs (a fresh one otherwise, named by failures)")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:  # worker processes are given their parent's
        config.option.seed = secrets.randbits(31)


@pytest.fixture(autouse=True)
def _repeatable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators without a seed of their own follow the run's seed, the test's name and their number in it."""
    made = np.random.default_rng
    key, count = zlib.crc32(request.node.nodeid.encode()), 0

    def default_rng(seed: Any = None) -> np.random.Generator:
        nonlocal count
        if seed is None:
            seed = [request.config.option.seed, key, count]
            count += 1
        return made(seed)

    monkeypatch.setattr(np.random, "default_rng", default_rng)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("Random inputs", f"repeat them with --seed {item.config.option.seed}"))
    return report
