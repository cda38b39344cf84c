"""`low_rank` and `factor` in recipes: what they say, what is refused and how it is said."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.errors import RecipeError
from sparsec.factoring import resolved_rank
from sparsec.recipe import load_recipe
from tests.kernels.programs import one_node_model
from tests.models import DIGITS, DIGITS_MLP

BAD: list[tuple[dict[str, Any], str]] = [
    ({"low_rank": {"rank": 0}}, r"rules\[0\].low_rank.rank: a rank is a number from 1 up.*found 0"),
    ({"low_rank": {"rank": "0%"}}, "found '0%'"),
    ({"low_rank": {"rank": "120%"}}, "at most 100 %"),
    ({"low_rank": {"rank": "many"}}, "found 'many'"),
    ({"low_rank": {"rank": True}}, "found True"),
    ({"low_rank": {"rank": 2.5}}, "found 2.5"),
    ({"low_rank": {}}, "low_rank.rank"),
    ({"low_rank": {"rank": 4, "schema": "int8"}}, "unknown key; did you mean 'scheme'"),
    ({"low_rank": {"rank": 4, "scheme": "int9"}}, "int9"),
    ({"low_rank": {"rank": 4, "scheme": "s50"}}, "without zeros; 's50' has some"),
    ({"low_rank": {"rank": 4, "algorithm": "oats"}}, "scheme 'int4' has no zeros"),
    ({"low_rank": {"rank": 4, "algorithm": "pca"}}, "'lorc', 'eora' or 'oats'"),
    ({"low_rank": {"rank": 4}, "factor": {"algorithm": "svd", "rank": 4}}, "svd is a low rank by itself"),
    ({"scheme": "s50", "low_rank": {"rank": 4, "algorithm": "oats"}, "factor": {"algorithm": "armor", "block": 4}}, "does not go with"),
    ({"factor": {"algorithm": "svd"}}, "algorithm svd needs 'rank'"),
    ({"factor": {"algorithm": "svd", "rank": 4, "blocks": 2}}, "algorithm svd takes rank, not blocks"),
    ({"factor": {"algorithm": "monarch", "rank": 4}}, "algorithm monarch needs 'blocks'"),
    ({"factor": {"algorithm": "armor", "block": 4}}, "armor wraps a sparse core; scheme 'int4'"),
    ({"scheme": "s50", "factor": {"algorithm": "svd", "rank": 4}}, "stored without zeros; scheme 's50'"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_recipes(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({"version": 1, "rules": [{"scheme": "int4", **keys}]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"low_rank": {"rank": 2, "algorithm": "eora"}},
            r"rules\[0\].low_rank.algorithm: 'eora' needs calibration.*'lorc'",
        ),
        (
            {"factor": {"algorithm": "svd_llm", "rank": 2}},
            r"rules\[0\].factor.algorithm: 'svd_llm' needs calibration.*'svd'",
        ),
        ({"factor": {"algorithm": "asvd", "rank": 2}}, "'asvd' needs calibration"),
    ],
)
def test_methods_that_need_inputs_say_so(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sparsec.compress(DIGITS_MLP, {"rules": [{"scheme": "int4", **keys}]}, input_shapes={"N": 1})


def test_ranks() -> None:
    assert [resolved_rank(rank, 30, 200) for rank in (7, "10%", "0.1%", "100%")] == [7, 3, 1, 30]


def test_what_has_no_such_form_is_coded_without_and_says_why() -> None:
    recipe = {"rules": [{"scheme": "int4", "low_rank": {"rank": 20}}], "min_elements": 0}
    layers = [row.record for row in sparsec.compress(DIGITS, recipe, input_shapes={"N": 1}, verify=False).report.layers]
    assert {layer.scheme for layer in layers} >= {"int4", "int4 + rank 20 int8"}
    for layer in layers:
        rows, cols = layer.shape[0], int(math.prod(layer.shape[1:]))
        if layer.op == "DepthwiseConv":
            wanted = "the groups of a convolution"
        elif min(rows, cols) < 20:
            wanted = f"no low-rank branch: rank 20 is more than the {min(rows, cols)} that"
        else:
            wanted = ""
        assert layer.reason.startswith("no low-rank") if wanted else layer.scheme != "int4"
        assert wanted in layer.reason


def test_what_saves_nothing_says_so() -> None:
    recipe = {"rules": [{"scheme": "int8", "factor": {"algorithm": "svd", "rank": "95%"}}], "min_elements": 0}
    layers = sparsec.compress(DIGITS_MLP, recipe, input_shapes={"N": 1}, verify=False).report.layers
    assert all(row.record.notes.startswith("saves nothing: the factors hold ") for row in layers)


def test_a_table_keeps_its_scheme() -> None:
    table = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    model = one_node_model("Gather", {"t": table, "i": np.zeros((2,), np.int64)}, ["t"])
    recipe = {"rules": [{"scheme": "int8", "factor": {"algorithm": "svd", "rank": 2}}], "min_elements": 0}
    (row,) = sparsec.compress(model, recipe, verify=False).report.layers
    assert (row.record.scheme, row.record.reason) == ("int8", "no svd: rows of a lookup table are no products")
