"""Tables for people: rich on a terminal, aligned plain text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; the columns in `left` are left-aligned, all the others hold numbers."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[int] = field(default=frozenset({0}))

    def text(self) -> str:
        """Plain text; every column is as wide as its widest cell."""
        cells = [self.headers, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.headers))]
        lines = [self._line(row, widths) for row in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.title, *lines] if self.title else lines)

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        parts = [
            cell.ljust(width) if i in self.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    def show(self, stream: IO[str] | None = None) -> None:
        """Print to `stream` (standard output): with rich when it is a terminal, else as plain text."""
        out = stream or sys.stdout
        if not out.isatty():
            print(self.text(), file=out)
            return
        import rich.box
        import rich.console
        import rich.markup
        import rich.table

        table = rich.table.Table(title=self.title or None, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for i, header in enumerate(self.headers):
            table.add_column(header, justify="left" if i in self.left else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(rich.markup.escape(cell) for cell in row))
        rich.console.Console(file=out).print(table)
