"""Settings for all tests; random inputs that are fresh for every state of the sources and can be repeated.

``np.random.default_rng()`` without a seed, and hypothesis, follow the run's seed, which follows the text of the sources:
whoever runs the same tree draws the same numbers, and the next change draws others. A failed test names the seed,
``pytest --seed N`` repeats it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.codegen import zig

SOURCES = ("bench", "codegen", "passes", "runtime", "sparsec", "tests")

# Several test processes share the cores: torch and OpenMP with one thread each finish sooner than with all.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that call zig themselves use the same cache as the tool chain.
os.environ.update(zig.environment())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, help="seed of the random inputs (by default the sources decide; failures name it)"
    )


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads its option
def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed is None:  # worker processes are given their parent's
        config.option.seed = seed_of_sources()
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.option.seed)


def seed_of_sources() -> int:
    """31 bits that change with any Python or C source of the project."""
    root, seed = Path(__file__).parent.parent, 0
    for path in sorted(path for folder in SOURCES for path in (root / folder).rglob("*.*")):
        if path.suffix in (".py", ".c", ".h"):
            seed = zlib.crc32(path.relative_to(root).as_posix().encode() + path.read_bytes(), seed)
    return seed >> 1


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
