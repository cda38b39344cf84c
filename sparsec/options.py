"""Values of command line options that have a form of their own: NAME=SHAPE,... and NAME=VALUE,..."""

from __future__ import annotations

from collections.abc import Iterator

import typer


def parse_shapes(text: str | None) -> dict[str, int | list[int]] | None:
    """`x=1x3x224x224,batch=1` -> {"x": [1, 3, 224, 224], "batch": 1}; raises BadParameter for anything else."""
    if text is None:
        return None
    shapes: dict[str, int | list[int]] = {}
    for name, value in _pairs(text, "--input-shapes", "x=1x3x224x224,batch=1"):
        try:
            sizes = [int(part) for part in value.split("x")]
        except ValueError:
            raise typer.BadParameter(
                f"'{value}' (for {name}) is no shape; write sizes with x between them, as in x=1x3x224x224",
                param_hint="--input-shapes",
            ) from None
        shapes[name] = sizes[0] if len(sizes) == 1 else sizes
    return shapes


def parse_values(text: str | None) -> dict[str, int | float] | None:
    """`sr=16000,scale=0.5` -> {"sr": 16000, "scale": 0.5}; raises BadParameter for anything else."""
    if text is None:
        return None
    values: dict[str, int | float] = {}
    for name, value in _pairs(text, "--input-values", "sr=16000"):
        try:
            values[name] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            raise typer.BadParameter(f"'{value}' (for {name}) is no number", param_hint="--input-values") from None
    return values


def _pairs(text: str, option: str, example: str) -> Iterator[tuple[str, str]]:
    for item in text.split(","):
        name, equals, value = item.rpartition("=")
        if not equals or not name or not value:
            raise typer.BadParameter(f"'{item}' is not NAME=VALUE; example: {option} {example}", param_hint=option)
        yield name.strip(), value.strip()
