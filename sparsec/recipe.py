"""Recipes: which weight gets which scheme, and by which algorithm.

    version: 1
    rules:
      - targets: "*"                 # or a list of selectors
        scheme: cb4-g32
      - targets: ["@first", "re:.*head.*"]
        scheme: int8
        activations: int8            # round the inputs of products while running
    ignore: [classifier.weight]      # stay dense

What `targets` and `ignore` may say: sparsec/selectors.py. For each weight the rule with the most specific matching selector counts;
among equals the later rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sparsec.errors import RecipeError, SchemeError
from sparsec.factoring import Factor, LowRank, Outliers, conflict
from sparsec.formats import NM, Scheme
from sparsec.formats.meaning import TableValue, VectorValue
from sparsec.recovery import Augment, Recover
from sparsec.selectors import Selectors, did_you_mean
from sparsec.structured import Structure

__all__ = ["PRESETS", "Calibrate", "Quantize", "Recipe", "Rule", "Sparsify", "Structure", "load_recipe"]

DEFAULT_MIN_ELEMENTS = 1024
"""Smaller weights stay dense: their side arrays and their kernels' set-up outweigh what they save."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sparsify(_Strict):
    """How the zeros of a sparse structure are chosen (docs/recipes.md).

    `magnitude` keeps the largest absolute values. The others need calibration inputs: `wanda` weighs values by their inputs, `gblm` by
    their gradients too (needs torch), `dsnot` goes on with exchanges that lower the output error, `sparsegpt` and `obs` also move
    what is lost to the weights that stay. `auto`: `obs` where there are calibration inputs (`sparsegpt` and exchanges for single
    weights of layers with more than 1024 inputs; `wanda` with `scope: global`), else `magnitude`.
    """

    algorithm: Literal["auto", "magnitude", "wanda", "gblm", "dsnot", "sparsegpt", "obs"] = "auto"
    scope: Literal["layer", "global", "output", "lamp", "erk"] = "layer"
    """Who gets the zeros. layer: every weight the same share. The others give the weights of the rule different shares: global
    compares scores of all of them (relative to the weight's mean score), output what they are of their output's power, lamp
    layer-adaptive magnitude scores, erk goes by shapes."""
    permute: bool = False
    """N:M: inputs in an order in which groups lose less, undone by the layers that make them (where that can be)."""
    reorder: bool = False
    """Blocks of several outputs (s16x1@50): rows in an order in which blocks lose less, undone by what reads the outputs or, where that
    cannot be, by a Gather behind the product."""
    damping: float = Field(default=0.03, ge=0)
    """Added to the diagonal of the inputs' second moment, as a share of its mean."""


class Quantize(_Strict):
    """How stored values become codes (docs/recipes.md).

    `nearest` rounds to the nearest level, k-means for codebooks; no data needed. `flexround` learns what to divide each weight by before
    it is rounded, `gpfq` follows the outputs input by input, `gptq` rounds column by column and moves the error to the columns that
    follow; `descent` goes on from there with coordinate descent and fits scales and codebooks again; `joint` changes all codes at
    once by proximal steps, in turn with such fits. `auto`: `descent` where there are calibration inputs, else `nearest`.
    """

    algorithm: Literal["auto", "nearest", "flexround", "gpfq", "gptq", "joint", "descent"] = "auto"
    scaling: Literal["none", "awq", "equalize"] = "none"
    """Factors of channels, folded into the neighbouring layers where that can be. awq: inputs with large activations are rounded
    more finely (needs calibration inputs). equalize: ranges of rows and of the columns that read them become equal (no data)."""
    reorder: bool = False
    """Codebooks for runs of rows (`cb3.r16`): rows in an order in which runs are alike, what reads them with them."""
    axis: Literal["given", "auto"] = "given"
    """auto: codebooks serve runs of rows or of inputs (`cb3.r16`, `cb3.i32`), as many, whichever rounds a weight with less error."""
    damping: float = Field(default=0.01, ge=0)
    """As in `Sparsify`."""


class Calibrate(_Strict):
    """How calibration inputs are used.

    sequential: layers see the activations of the model as compressed so far; else the uncompressed model's. correction: 0 to 1,
    how much of the difference between the two a layer makes up for: in its inputs, and two thirds as far in what is added to its
    outputs. samples: the most that are read. mask: an input of the model that is 0 where another input is padding; what products
    read there does not count (models without such an input: no matter). biases: biases take up what compression does to the mean
    of a layer's outputs; a layer without a bias gets one.
    """

    sequential: bool = True
    correction: float = Field(default=0.75, ge=0, le=1)
    samples: int = Field(default=256, ge=1)
    mask: str = "attention_mask"
    biases: bool = True


class Rule(_Strict):
    """One scheme for the weights that the selectors in `targets` reach and those in `ignore` do not."""

    targets: Selectors = ("*",)
    ignore: Selectors = ()
    scheme: str
    sparsify: Sparsify = Sparsify()
    quantize: Quantize = Quantize()
    low_rank: LowRank | None = None
    factor: Factor | None = None
    outliers: Outliers | None = None
    activations: Literal["auto", "fp32", "int8", "int8-static", "int16"] = "auto"
    """Inputs of products: float32, or rounded to int8, while running (`int8`, matrix products only) or by a range that calibration
    chooses (`int8-static`, convolutions too); `int16`: products of sparse float weights may be rounded to
    16 bits (sparsec/fixed.py), convolutions too. `auto`: int8 while running, or int16, within `activation_error`."""
    activation_error: float = Field(default=1e-3, ge=0)
    """The error budget of `auto`: relative error (RMS) that rounding may add to a product."""
    optional: bool = False
    """True: the rule's selectors may match nothing (presets, recipes shared by several models)."""

    @property
    def several_products(self) -> bool:
        """Whether the weight becomes more than one product."""
        return any(part is not None for part in (self.low_rank, self.factor, self.outliers))

    @field_validator("scheme")
    @classmethod
    def _scheme(cls, value: str) -> str:
        try:
            return str(Scheme.parse(value))
        except SchemeError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _fits_the_scheme(self) -> Self:
        scheme, sparsify = Scheme.parse(self.scheme), self.sparsify
        structure, meaning = scheme.structure, scheme.codec.meaning
        scope = meaning.scope.kind if isinstance(meaning, TableValue | VectorValue) else "tensor"
        if self.quantize.reorder and scope != "rows":
            raise ValueError(
                f"quantize.reorder is for codebooks of runs of rows (cb3.r16); the scheme is '{self.scheme}'"
            )
        if self.quantize.axis == "auto" and scope == "tensor":
            raise ValueError(
                f"quantize.axis: auto chooses between codebooks for rows and for inputs (cb3.r16, cb3.i32); the scheme is "
                f"'{self.scheme}'"
            )
        if self.quantize.axis == "auto" and self.quantize.reorder:
            raise ValueError("quantize.axis: auto and quantize.reorder do not go together; reorder is for rows")
        if sparsify.algorithm == "dsnot" and structure.block != (1, 1):
            raise ValueError(
                f"sparsify.algorithm 'dsnot' exchanges single weights, '{structure}' keeps blocks; choose wanda, sparsegpt or obs"
            )
        dim = Scheme.parse(self.scheme).codec.dim
        if self.quantize.algorithm == "flexround" and dim > 1:
            raise ValueError(
                f"quantize.algorithm 'flexround' rounds single values, '{self.scheme}' codes {dim} together; choose gpfq, gptq or descent"
            )
        if sparsify.scope == "global" and sparsify.algorithm in ("gblm", "sparsegpt", "obs"):
            raise ValueError(
                f"sparsify.scope 'global' compares scores of different layers; those of '{sparsify.algorithm}' change as weights "
                "leave and cannot be compared. Choose lamp or erk, or algorithm magnitude, wanda or dsnot"
            )
        if sparsify.permute and not isinstance(structure, NM):
            raise ValueError(f"sparsify.permute orders the inputs of N:M weights (s2:4); the scheme is '{self.scheme}'")
        if sparsify.reorder and structure.block[0] == 1:
            raise ValueError(
                f"sparsify.reorder orders rows for blocks of several outputs (s16x1@50); the scheme is '{self.scheme}'"
            )
        if sparsify.reorder and self.quantize.reorder:
            raise ValueError(
                "sparsify.reorder and quantize.reorder do not go together: rows have one order; keep that for the blocks"
            )
        if sparsify.scope in ("lamp", "erk", "output") and isinstance(structure, NM):
            raise ValueError(
                f"sparsify.scope '{sparsify.scope}': '{structure}' fixes the zeros of every group; choose layer"
            )
        if why := conflict(self.scheme, self.low_rank, self.factor, self.outliers):
            raise ValueError(why)
        return self


class Recipe(_Strict):
    """A validated recipe; without rules every weight stays dense."""

    version: Literal[1] = 1
    rules: tuple[Rule, ...] = ()
    ignore: Selectors = ()
    min_elements: int = Field(default=DEFAULT_MIN_ELEMENTS, ge=0)
    structure: Structure | None = None
    calibrate: Calibrate = Calibrate()
    recover: Recover | None = None
    keep: Literal["size", "speed"] = "size"
    """speed: a compiler decodes a weight to float32 where the dense product is faster; size: never."""

    def to_yaml(self) -> str:
        """YAML text that loads to an equal recipe; defaults are left out, except the version."""
        data = {"version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}
        return yaml.safe_dump(data, sort_keys=False, width=100, allow_unicode=True)


def _rule(targets: str, scheme: str) -> Rule:
    return Rule(targets=(targets,), scheme=scheme, optional=True)


PRESETS: dict[str, Recipe] = {
    # 8 bits per channel: the loss is usually below what a test set can show.
    "safe": Recipe(rules=(_rule("*", "int8"),)),
    # 4-bit codebooks where most of the weights are; what is few or fragile keeps 8 bits.
    "balanced": Recipe(
        rules=(_rule("*", "cb4-g32"), *(_rule(s, "int8") for s in ("DepthwiseConv", "@first", "@last")))
    ),
    # Smallest without data: 3-bit codebooks, 4 bits for the first and last layer.
    "small": Recipe(
        rules=(
            _rule("*", "cb3-g32"),
            _rule("DepthwiseConv", "int8"),
            _rule("@first", "cb4-g32"),
            _rule("@last", "cb4-g32"),
        )
    ),
    # Half of the 16x1 blocks dropped, values kept in fp32: fewest operations. Without fine-tuning it costs accuracy.
    "fast": Recipe(
        rules=(
            _rule("*", "s16x1@50"),
            _rule("DepthwiseConv", "fp32"),
            _rule("Gather", "int8"),
            _rule("@first", "fp32"),
            _rule("@last", "int8"),
        )
    ),
}
"""Recipes by name; see docs/recipes.md."""


def load_recipe(source: Any = None) -> Recipe:
    """Make a recipe of whatever the user gave.

    Args:
        source: None (all dense), `Recipe`, mapping, path of a YAML file, YAML text (more than one line), name of a preset, or a
            scheme such as `cb4-g32`, which then holds for every weight; `cb4-g32 x int8` rounds the inputs of products too.

    Raises:
        RecipeError: unknown key, bad value, scheme that does not parse (with the line where the text is YAML), no such file.
    """
    if source is None:
        return Recipe()
    if isinstance(source, Recipe):
        return source
    if isinstance(source, Mapping):
        return _validate(dict(source), "recipe", None)
    if isinstance(source, str) and "\n" in source:
        return _from_yaml(source, "recipe")
    if isinstance(source, PathLike) or (isinstance(source, str) and source.endswith((".yaml", ".yml"))):
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path}: cannot be read: {error}") from error
        return _from_yaml(text, str(path))
    if isinstance(source, str):
        return _from_word(source)
    raise RecipeError(f"a recipe is a scheme, preset, YAML file, mapping or Recipe; found {type(source).__name__}.")


def _from_word(word: str) -> Recipe:
    if word in PRESETS:
        return PRESETS[word]
    text, times, activations = word.partition(" x ")
    if times and activations not in ("fp32", "int8", "int8-static", "int16"):
        raise RecipeError(
            f"recipe {word!r}: activations are fp32, int8, int8-static or int16 (as in 'cb4-g32 x int8'), not {activations!r}."
        )
    try:
        scheme = Scheme.parse(text)
    except SchemeError as error:
        raise RecipeError(
            f"recipe {word!r} is no preset ({', '.join(sorted(PRESETS))}){did_you_mean(word, PRESETS)}, "
            f"no .yaml file and no scheme: {error}"
        ) from None
    if scheme.is_plain:
        return Recipe()
    rule = Rule(scheme=str(scheme))
    return Recipe(rules=(rule.model_copy(update={"activations": activations}) if times else rule,))


def _from_yaml(text: str, where: str) -> Recipe:
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {error}") from None
    _refuse_repeated_keys(tree, where)
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: a recipe is a mapping with 'version' and 'rules', found {type(data).__name__}.")
    if "version" not in data:
        raise RecipeError(f"{where}: 'version: 1' is missing.")
    return _validate(data, where, tree)


def _refuse_repeated_keys(tree: yaml.Node | None, where: str) -> None:
    """YAML readers keep the last of two equal keys and say nothing."""
    if isinstance(tree, yaml.SequenceNode):
        for item in tree.value:
            _refuse_repeated_keys(item, where)
    elif isinstance(tree, yaml.MappingNode):
        seen = set()
        for key, value in tree.value:
            if key.value in seen:
                raise RecipeError(f"{where}: line {key.start_mark.line + 1}: '{key.value}' is given twice; keep one.")
            seen.add(key.value)
            _refuse_repeated_keys(value, where)


def _validate(data: dict[str, Any], where: str, tree: yaml.Node | None) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            loc = tuple(item["loc"])
            path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
            line = _line_of(tree, loc)
            place = f"line {line}: " if line else ""
            if item["type"] == "extra_forbidden":
                known = _keys_at(loc)
                text = f"unknown key{did_you_mean(str(loc[-1]), known)}. Allowed: {', '.join(known)}"
            else:
                text = item["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
            problems.append(f"{place}{path}: {text}")
        raise RecipeError(f"{where}: " + "\n  ".join(problems)) from None


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    parent = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
    models: dict[str, type[BaseModel]] = {
        "rules": Rule, "sparsify": Sparsify, "quantize": Quantize, "low_rank": LowRank, "factor": Factor,
        "outliers": Outliers, "structure": Structure, "calibrate": Calibrate, "recover": Recover, "augment": Augment,
    }  # fmt: skip
    return list(models.get(parent, Recipe).model_fields)


def _line_of(tree: yaml.Node | None, loc: Iterable[int | str]) -> int | None:
    """The line, from 1, of the innermost part of `loc` that the YAML text has."""
    if tree is None:
        return None
    node, line = tree, tree.start_mark.line + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
