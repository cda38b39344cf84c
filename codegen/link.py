"""model.c compiled and linked with the kernels and the runtime: each product cached by the content of all that goes in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from sparsec.cache import digest, entry, used, writing
from sparsec.codegen.emit_c import Source
from sparsec.codegen.toolchain import Toolchain, runtime_digest, runtime_folder

_API_TEXT = """
spc_status_text spc_weights_from_memory spc_weights_open spc_weights_close spc_session_bytes spc_session_open
spc_session_run spc_session_profile spc_session_close spc_open spc_cpu_count spc_bundle_model
"""
_API = _API_TEXT.split()
_GPU_API_TEXT = "spc_explain spc_session_run_device spc_session_stream spc_device_take spc_device_give spc_device_wait"
_GPU_API = _GPU_API_TEXT.split()
_MODEL_API = ("model", "init", "run", "free", "input_info", "output_info")


class Linker:
    """Makes the binaries of one model on demand.

    kernels: (archive member, object file) sorted by member; the objects are cache entries, named by their content.
    Every method returns a path in the cache (copy it, never change it) and raises ToolchainError.
    """

    def __init__(self, source: Source, kernels: Sequence[tuple[str, Path]], tools: Toolchain) -> None:
        self.source, self.kernels, self.tools = source, kernels, tools

    @property
    def exports(self) -> list[str]:
        """Symbols a shared library of the model shows."""
        gpu = _GPU_API if self.tools.target.gpu else ()
        return sorted([*_API, *gpu, *(f"{self.source.identifier}_{f}" for f in _MODEL_API)])

    def model_object(self) -> Path:
        """model.o. It uses nothing of the C library but fixed-width integers: one object serves every C library."""
        return self._cached("model.o", self._compile_model)

    def shared(self) -> Path:
        """The shared library."""
        name = f"lib{self.source.identifier}.so"

        def make(output: Path) -> None:
            objects = [self.model_object(), *self.tools.runtime_objects(), *self._objects]
            self.tools.shared(objects, output, self.exports, name)

        return self._cached("model.so", make)

    def archive(self) -> Path:
        """The static library: model, runtime and kernels."""

        def make(output: Path) -> None:
            runtime = [(path.name, path) for path in self.tools.runtime_objects()]
            self.tools.archive([("model.o", self.model_object()), *runtime, *self.kernels], output)

        return self._cached("model.a", make)

    def kernels_archive(self) -> Path:
        """The static library of the kernels alone."""
        return self._cached("kernels.a", lambda output: self.tools.archive(self.kernels, output))

    def program(self) -> Path:
        """The demo program."""

        def make(output: Path) -> None:
            runtime = self.tools.runtime_objects(static=True, demo=True)
            self.tools.executable([self.model_object(), *runtime, *self._objects], output)

        return self._cached("demo.bin", make)

    @property
    def _objects(self) -> list[Path]:
        return [path for _, path in self.kernels]

    @cached_property
    def _key(self) -> str:
        names = [part for member, path in self.kernels for part in (member, path.stem)]
        texts = [self.source.identifier, self.source.model_c, self.source.header, runtime_digest()]
        return digest(*texts, *self.tools.key, *self.exports, *names)

    def _cached(self, name: str, make: Callable[[Path], None]) -> Path:
        path = entry("linked", f"{digest(self._key, name)}{Path(name).suffix}")
        if not used(path):
            with writing(path) as made:
                make(made)
        return path

    def _compile_model(self, output: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "model.c").write_text(self.source.model_c)
            (folder / f"{self.source.identifier}.h").write_text(self.source.header)
            self.tools.compile(folder / "model.c", output, includes=[folder, runtime_folder()])
