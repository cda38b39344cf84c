"""Recipes: which rule wins, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsec.errors import RecipeError
from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.recipe import PRESETS, load_recipe
from tests.models import DIGITS


def schemes(recipe: object) -> dict[str, str]:
    """Weight name -> scheme on the digits network."""
    result = compress(load_model(DIGITS, input_shapes={"N": 1}), recipe)
    return {layer.name: layer.scheme for layer in result.layers}


def test_the_more_specific_selector_wins() -> None:
    plain = schemes({"version": 1, "rules": [{"targets": "*", "scheme": "int8"}], "min_elements": 1})
    name = next(name for name, scheme in plain.items() if scheme == "int8")
    rules = [
        {"targets": name, "scheme": "cb4-g32"},
        {"targets": "re:.*", "scheme": "int4"},
        {"targets": "*", "scheme": "int8"},
    ]
    found = schemes({"version": 1, "rules": rules, "min_elements": 1})
    assert found[name] == "cb4-g32"
    assert {scheme for other, scheme in found.items() if other != name} <= {"int4", "fp32"}


def test_ignored_weights_stay_dense() -> None:
    name = next(iter(n for n, s in schemes("int8").items() if s == "int8"))
    assert schemes({"version": 1, "rules": [{"targets": "*", "scheme": "int8"}], "ignore": [name]})[name] == "fp32"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_fit_any_model(name: str) -> None:
    assert set(schemes(name).values()) - {"fp32"}


def test_a_recipe_written_and_read_back_is_the_same(tmp_path: Path) -> None:
    for recipe in PRESETS.values():
        (tmp_path / "r.yaml").write_text(recipe.to_yaml())
        assert load_recipe(tmp_path / "r.yaml") == recipe


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"version": 1, "rules": [{"targets": "*", "schema": "int8"}]}, "schema"),
        ({"version": 1, "rules": [{"targets": "*", "scheme": "int9"}]}, "int9"),
        ({"version": 2, "rules": []}, "version"),
        ("balancd", "balanced"),
    ],
    ids=["unknown key", "bad scheme", "version", "typo"],
)
def test_bad_recipes(recipe: object, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe(recipe)


def test_a_selector_that_matches_nothing() -> None:
    with pytest.raises(RecipeError, match="no_such_layer"):
        schemes({"version": 1, "rules": [{"targets": "no_such_layer", "scheme": "int8"}]})
