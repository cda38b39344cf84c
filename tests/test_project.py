"""The project's own files agree with each other."""

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def test_every_dependency_is_pinned_and_the_pin_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pinned = pins()
    for requirement in wanted:
        name, version = re.fullmatch(r"([\w.-]+)(?:==([\w.]+)|>=\d+)?", requirement).groups()
        assert name.lower() in pinned, f"{requirement} is not in constraints.txt"
        assert version in (None, pinned[name.lower()]), f"{requirement}: constraints.txt has {pinned[name.lower()]}"


def test_every_package_folder_is_installed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(setuptools["packages"])
    for top, package in (("sparsec", "sparsec"), ("passes", "sparsec.passes"), ("codegen", "sparsec.codegen")):
        for init in (ROOT / top).rglob("__init__.py"):
            inside = ".".join(init.parent.relative_to(ROOT / top).parts)
            assert (f"{package}.{inside}" if inside else package) in listed, (
                f"{init.parent}: not in pyproject's packages"
            )
