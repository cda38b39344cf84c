"""`python -m bench gpu`: products and MiniLM on an NVIDIA GPU beside cuBLAS, torch's int4 and 2:4, bitsandbytes, Triton and torch.compile.

    python -m bench gpu --prepare FOLDER      where sparsec is installed, with or without a GPU: compile all that is timed
    python -m bench gpu --run FOLDER          where the GPU is: Python, numpy and the driver; torch for the rivals
    python -m bench gpu                       both on one machine

Rates are shown as shares of what the GPU does at most, measured first: reading memory, a copy, torch.matmul on large squares.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

from bench.blobs import BlobReader
from bench.gpu_bars import HEADERS, JUDGED_HEADERS, WRONG, Roofs, Row, cells, judged
from bench.gpu_driver import Gpu, Workspace
from bench.output import markdown, write_json

ARCHIVE = "gpu.zip"


def prepare(folder: Path, arch: str, only: Sequence[str] = ()) -> int:
    """Write all that is timed to a folder."""
    from bench.gpu_prepare import prepare as write

    folder.mkdir(parents=True, exist_ok=True)
    write(folder / ARCHIVE, arch, only)
    return 0


def run(folder: Path | None, json_path: Path | None, only: Sequence[str] = (), resume: bool = False) -> int:
    """Time what was prepared (None: prepare it now), print the table and the bars; 1 without a GPU, or if one of our kernels is wrong.

    json_path has the rows from the first on. resume: go on behind them, in a new process after a kernel that failed.
    """
    try:
        gpu = Gpu()
    except OSError as missing:
        print(f"bench gpu needs an NVIDIA GPU; there is none here ({missing})")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch)
            prepare(folder, f"sm_{gpu.sm}", only)
        try:
            archive = BlobReader(folder / ARCHIVE)
        except (OSError, BadZipFile) as problem:
            print(f"{folder / ARCHIVE} cannot be read ({problem}); write it with --prepare {folder}")
            return 1
        if (arch := archive.index["arch"]) != f"sm_{gpu.sm}":
            print(f"{folder} is for {arch}, this is an sm_{gpu.sm} ({gpu.name}): prepare it with --arch sm_{gpu.sm}")
            return 1
        with Workspace(gpu):  # the context stays
            return _run(archive, gpu, json_path or Path(scratch) / "rows.json", only, resume)


def _run(archive: BlobReader, gpu: Gpu, kept: Path, only: Sequence[str], resume: bool) -> int:
    from bench.gpu_run import LostError, measure, roofs

    rows: list[Row] = []
    if resume:
        before = json.loads(kept.read_text())["gpu"]
        rows, most = [Row(**row) for row in before["rows"]], Roofs(**before["roofs"])
    else:
        most = roofs(archive, gpu)
        print(f"{gpu.name}: {most}\n", flush=True)

    def keep(row: Row) -> None:
        shown = row.note if row.seconds is None else f"{1e6 * row.seconds:.1f} us {row.note}"
        print(f"{row.job}: {row.candidate}: {shown}".rstrip(), flush=True)
        write_json(kept, {"gpu": {"device": gpu.name, "roofs": asdict(most), "rows": [asdict(each) for each in rows]}})

    try:
        measure(archive, gpu, rows, only, keep)
    except LostError as lost:
        print(f"{lost}: the GPU is lost to this process, another one goes on", flush=True)
        return _run_elsewhere(archive.path.parent, kept, only)
    print(f"\n{gpu.name}: {most}\n")
    print(markdown(HEADERS, [cells(row, most) for row in rows], left=2))
    print()
    print(markdown(JUDGED_HEADERS, judged(rows, most), left=3))
    ours = {(e["job"], e["scheme"]) for kind in ("products", "models") for e in archive.index[kind]}
    return int(
        any(row.seconds is None or row.note.startswith(WRONG) for row in rows if (row.job, row.candidate) in ours)
    )


def _run_elsewhere(folder: Path, kept: Path, only: Sequence[str]) -> int:
    """The rest of the rows in a new process."""
    words = [word for name in only for word in ("--only", name)]
    command = [sys.executable, "-m", "bench", "gpu", "--run", str(folder), "--json", str(kept), "--resume", *words]
    return subprocess.run(command).returncode
