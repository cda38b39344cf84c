"""What commands print: results as tables or JSON, notes and progress on standard error, errors."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer

__all__ = ["fail", "note", "print_result", "progress_bar", "settings"]


@dataclass
class _Settings:
    verbose: bool = False
    json: bool = False


settings = _Settings()
"""Of the command that runs."""


def note(text: str) -> None:
    """A line on standard error."""
    typer.echo(text, err=True)


def print_result(data: Any, *shows: Callable[[], object]) -> None:
    """With --json the data, else what `shows` print, with an empty line between."""
    if settings.json:
        from sparsec.files import dumps

        typer.echo(dumps(data), nl=False)
        return
    for index, show in enumerate(shows):
        if index:
            typer.echo()
        show()


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int, str], None] | None]:
    """A progress bar with stage and layer on standard error; None unless that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, detail: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None, detail="")
            bar.update(tasks[stage], completed=done, total=total or None, detail=detail[:60])

        yield report


def fail(error: BaseException, code: int) -> int:
    """Say what went wrong; returns `code`."""
    if settings.verbose:
        traceback.print_exc()
    if settings.json:
        from sparsec.files import dumps

        typer.echo(dumps({"error": {"type": type(error).__name__, "message": str(error)}}), nl=False)
    note(f"error: {error or type(error).__name__}")
    return code
