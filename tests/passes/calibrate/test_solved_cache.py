"""Solved layers come back from the cache as they were, and only for the same work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.formats import Scheme
from sparsec.passes.calibrate import layers as calibration
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.calibrate.solved_cache import key_of, load_solved, store_solved
from sparsec.passes.statistics import Moments
from sparsec.recipe import Calibrate, Rule
from tests.passes.calibrate.networks import choices, samples, text_network


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))


def layer(scheme: str, groups: int = 1, **rule: Any) -> Layer:
    rng = np.random.default_rng(0)
    statistics = []
    for _ in range(groups):
        moments = Moments(16, with_dense=True)
        x = rng.standard_normal((200, 16)).astype(np.float32)
        moments.add(x, x + 0.1)
        statistics.append(moments.statistics(centred=True))
    weight = rng.standard_normal((24, 16)).astype(np.float32)
    made = Rule(scheme=scheme, **rule)
    return Layer("w", weight, scheme, Scheme.parse(scheme).structure, made, Calibrate(), statistics)


RULES: list[tuple[str, dict[str, Any]]] = [
    ("int4-g8", {}),
    ("s2:4-cb3-c", {}),
    ("s50", {}),
    ("vq2d4-c", {}),
    ("int3", {"low_rank": {"rank": 2, "scheme": "int8"}}),
    ("vq2d4", {"outliers": {"share": "10%"}}),
    ("int8", {"factor": {"algorithm": "monarch", "blocks": 4, "rank": 2}}),
]


@pytest.mark.parametrize(("scheme", "rule"), RULES, ids=str)
def test_what_is_stored_comes_back(scheme: str, rule: dict[str, Any]) -> None:
    work = layer(scheme, **rule)
    solved = solve(work)
    key = key_of(work)
    assert load_solved(key) is None
    store_solved(key, solved)
    found = load_solved(key)
    assert found is not None
    assert type(found.encoded) is type(solved.encoded)
    np.testing.assert_array_equal(found.decoded(), solved.decoded())
    assert found.encoded.nbytes == solved.encoded.nbytes
    assert solved.shift is not None
    np.testing.assert_array_equal(found.shift, solved.shift)
    assert (found.zeros, found.nmse, found.output_error) == (solved.zeros, solved.nmse, solved.output_error)


def test_other_work_has_another_key() -> None:
    work = layer("int4-g8")
    moved = replace(work.statistics[0], mean_dense=work.statistics[0].mean_dense + 1)
    others = [
        replace(work, weight=work.weight + 1),
        replace(work, scheme="int3-g8"),
        replace(work, structure=Scheme.parse("s50").structure),
        replace(work, rule=Rule.model_validate({"scheme": "int4-g8", "quantize": {"algorithm": "gptq"}})),
        replace(work, settings=Calibrate(correction=0.1)),
        replace(work, statistics=[moved]),
        replace(work, statistics=[replace(work.statistics[0], cross=None)]),
    ]
    assert len({key_of(w) for w in [work, *others]}) == 1 + len(others)
    assert key_of(replace(work, name="v")) == key_of(work)


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    work = layer("int4-g8")
    store_solved(key_of(work), solve(work))
    (path,) = (tmp_path / "cache" / "layers").glob("*.arrays")
    path.write_bytes(path.read_bytes()[:-100])
    assert load_solved(key_of(work)) is None


def test_a_run_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[str] = []

    def counting(work: Layer) -> Solved:
        if len(solved) == 2 and not resumed:
            raise KeyboardInterrupt
        solved.append(work.name)
        return solve(work)

    monkeypatch.setattr(calibration, "solve", counting)

    def run() -> list[np.ndarray]:
        model = text_network()
        with ThreadPoolExecutor(1) as executor:
            found = calibration.calibrate(
                model, choices(model, "int3"), samples(model, 6), executor, settings=Calibrate()
            )
        return [one.decoded() for one in found if one is not None]

    resumed = False
    with pytest.raises(KeyboardInterrupt):
        run()
    resumed = True
    again = run()
    assert len(again) == 4
    assert sorted(solved) == sorted(set(solved)), "a layer was solved twice"
    assert len(solved) == 4
    monkeypatch.setenv("SPARSEC_CACHE", "off")
    for a, b in zip(again, run(), strict=True):
        np.testing.assert_array_equal(a, b)
