"""Writing output: never over something that is there, never half."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsec.errors import OutputError


def check_free(path: str | Path, force: bool) -> None:
    """Raise OutputError if `path` exists and may not be replaced.

    With `force` a file may be replaced, and a folder if it is empty or a sparsec bundle.
    """
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        return
    if not force:
        raise OutputError(
            f"{path} exists and was kept; pass --force (force=True) to replace it, or choose another name"
        )
    if path.is_dir() and any(path.iterdir()) and not (path / "manifest.json").is_file():
        raise OutputError(
            f"{path} is a folder but no sparsec bundle (no manifest.json); it was kept: choose another name"
        )


@contextmanager
def replacing_file(path: str | Path, force: bool) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it when the block ends well; otherwise removed.

    Raises:
        OutputError: `path` exists (kept unless `force`), is a folder, or cannot be written.
    """
    path = Path(path)
    check_free(path, force)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    try:
        yield scratch / path.name
        os.replace(scratch / path.name, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def dumps(data: Any) -> str:
    """The one JSON form of sparsec's files and of `--json`: sorted keys, two spaces, a newline at the end."""
    return json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
