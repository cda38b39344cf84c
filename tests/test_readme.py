"""Runs what the README shows: python blocks in one session, console blocks through the command line."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsec.cli import main
from sparsec.recipe import load_recipe
from sparsec.target import NAMED
from tests.models import DIGITS

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


def blocks(language: str) -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language]
    assert found, f"the README has no {language} block any more"
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(DIGITS, tmp_path / "digits.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks(folder: Path) -> None:
    names: dict[str, Any] = {}
    for text in blocks("python"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(text, str(README), "exec"), names)
    assert names["outputs"]["logits"].shape == (1, 10)
    assert (folder / "digits_int8.onnx").exists()
    assert (folder / "digits_bundle" / "manifest.json").exists()


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(command, lines of output that the README shows) of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


@pytest.mark.parametrize("text", blocks("console"))
def test_console_blocks(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "--target arm" in text and shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    for command, shown in commands(text):
        words = shlex.split(command)
        assert words.pop(0) == "sparsec"
        assert main(words) == 0, capsys.readouterr().err
        captured = capsys.readouterr()
        # "..." stands for any lines or text, as in doctest; notes on standard error come last on a terminal.
        pattern = "\n".join(re.sub(r"\[", "[[]", line).replace("...", "*") for line in shown)
        assert fnmatch.fnmatchcase((captured.out + captured.err).strip(), pattern), captured.out + captured.err


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_blocks_are_recipes(text: str) -> None:
    assert load_recipe(text).rules


def test_all_targets_are_listed() -> None:
    text = README.read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in NAMED)


def test_the_demo_is_what_the_example_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures need the real model; the sentences, tables and the folder do not."""
    monkeypatch.syspath_prepend(str(README.parent / "examples"))
    minilm = importlib.import_module("minilm")

    (shown,) = [text for kind, text in BLOCKS if not kind and "Similarity to" in text]
    assert f'Similarity to "{minilm.QUERY}"\noriginal  compressed\n' in shown
    lines = shown.splitlines()
    assert [line[22:] for line in lines if re.match(r" +-?\d\.\d{3} +-?\d\.\d{3}  ", line)] == list(minilm.SENTENCES)
    assert lines[-1] == "wrote build/minilm"


def test_make_targets_and_documents_exist() -> None:
    text, root = README.read_text(encoding="utf-8"), README.parent
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    wanted = set(re.findall(r"(?:^|`)make (\w+)", text, re.M))
    assert {"demo", "test"} <= wanted
    assert all(re.search(rf"^{name}:", makefile, re.M) for name in wanted), wanted
    for path in re.findall(r"`((?:docs|examples|bench|tests|\.ci)/[\w./-]*)`", text):
        assert (root / path).exists(), path
