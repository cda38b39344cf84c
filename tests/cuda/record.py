"""Records all that tests check on a simulated GPU into one file, which `python -m tests.cuda.replay` runs on a real one.

    python -m tests.cuda.record FILE [-k EXPRESSION] [--arch sm_90] [--no-models]

The tests of this folder run once; of every kernel that the simulator took the machine code, the launch, the arguments and what became of
them are kept. Whole models (recorded_models.py) are compiled, their inputs and onnxruntime's outputs kept beside them. Needs NVRTC,
and SPARSEC_DATA for models of the zoo; what is missing is said. Images are cached: recording again takes as long as the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.blobs import BlobWriter
from bench.zoo import MissingData
from sparsec.cache import digest, entry, source_digest, used, writing
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.nvrtc import DEVICE_HEADER, compile_image, compiler_version, require_compiler
from sparsec.errors import SparsecError, ToolchainError
from tests.cuda import simulator
from tests.cuda.recorded_models import MODELS, record_model

Array = np.ndarray[Any, Any]
_FOLDER = Path(__file__).parent


@dataclass(eq=False)
class Recorder:
    """An observer of the simulator (simulator.OBSERVERS): keeps each kernel, and each way it was started, once."""

    blobs: BlobWriter
    sources: dict[tuple[str, str], None] = field(default_factory=dict)
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """What a failed test recorded goes: what is wrong here would only be wrong there."""
        if report.failed:
            self.kernels = {key: kept for key, kept in self.kernels.items() if kept["test"] != report.nodeid}

    def __call__(
        self, source: str, name: str, launch: Launch, given: Sequence[Array], wanted: Sequence[Array], shift: int
    ) -> None:
        self.sources[source, name] = None
        kept = {
            "source": [source, name],
            "symbol": name,
            "grid": launch.grid,
            "block": launch.block,
            "shared_bytes": launch.shared_bytes,
            "shift": shift,
            "arguments": [
                {"given": self.blobs.put_array(a), "wanted": self.blobs.put_array(b)}
                for a, b in zip(given, wanted, strict=True)
            ],
        }
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        self.kernels.setdefault(digest(repr(kept)), {"test": test, "name": f"{test} {name}".strip(), **kept})

    def entries(self, arch: str) -> list[dict[str, Any]]:
        """The recorded kernels for the archive, compiled for an architecture; of those that do not compile a line says so."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            images = pool.map(lambda key: cubin(key[0], key[1], arch), self.sources)
            found = zip(self.sources, images, strict=True)
            places = {key: self.blobs.put(image, "images") for key, image in found if isinstance(image, bytes)}
        for kept in self.kernels.values():
            if tuple(kept["source"]) not in places:
                print(f"left out {kept['name']}: it does not compile for {arch}")
        return [
            {"name": kept["name"], "image": places[tuple(kept["source"])], **_without(kept, "test", "name", "source")}
            for kept in self.kernels.values()
            if tuple(kept["source"]) in places
        ]


def cubin(source: str, name: str, arch: str) -> bytes | None:
    """The machine code of a kernel, kept in the cache; None where it does not compile."""
    key = digest(source, name, arch, compiler_version(), source_digest(DEVICE_HEADER))
    path = entry("cuda-images", key).with_suffix(".cubin")
    if not used(path):
        try:
            image = compile_image(source, name, arch).cubin
        except ToolchainError:
            return None
        with writing(path) as made:
            made.write_bytes(image)
    return path.read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.record", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="tests, as pytest chooses them")
    parser.add_argument("--arch", default="sm_90", help="the GPU's architecture")
    parser.add_argument("--no-models", action="store_true", help="kernels alone")
    options = parser.parse_args(arguments)
    require_compiler(options.arch)
    blobs = BlobWriter()
    recorder = Recorder(blobs)
    simulator.OBSERVERS.append(recorder)
    try:
        words = [str(_FOLDER), "-q", "-m", "not slow", "-k", options.k, "-p", "no:cacheprovider"]
        status = pytest.main(words, plugins=[recorder])
    finally:
        simulator.OBSERVERS.remove(recorder)
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        return 1
    made = [] if options.no_models else [_model(name, recipe, options.arch, blobs) for name, recipe in MODELS]
    models = [model for model in made if model is not None]
    index = {"arch": options.arch, "kernels": recorder.entries(options.arch), "models": models}
    size = blobs.save(options.file, index)
    print(f"{options.file}: {len(index['kernels'])} kernel checks, {len(models)} models, {size / 1e6:.1f} MB")
    return int(status == pytest.ExitCode.TESTS_FAILED or len(index["kernels"]) < len(recorder.kernels))


def _model(name: str, recipe: str | None, arch: str, blobs: BlobWriter) -> dict[str, Any] | None:
    try:
        made = record_model(name, recipe, arch, blobs)
    except (MissingData, ModuleNotFoundError, SparsecError) as missing:
        print(f"left out {name}: {missing}")
        return None
    print(f"{made['name']}: {made['weights'][2] / 1e6:.1f} MB of weights", flush=True)
    return made


def _without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


if __name__ == "__main__":
    sys.exit(main())
