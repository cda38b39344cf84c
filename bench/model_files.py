"""Files of whole models for the rivals: ONNX, pruned ONNX, torch's exported program, inputs. Kept in the cache folder."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.environments import cache_folder
from bench.zoo import MissingData, ZooModel

if TYPE_CHECKING:
    import torch

CALIBRATION_FEEDS = 16
OLD_OPSET = 13
"""What DeepSparse still reads; its files come from torch's older exporter."""


@dataclass(frozen=True)
class ModelFiles:
    """One zoo model in a folder of the cache, named by what it was made of. Files are made when they are asked for."""

    model: ZooModel
    folder: Path

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        if not path.exists():
            partial = path.with_name(f"{os.getpid()}-{name}")  # numpy and torch want the suffix last
            make(partial)
            partial.replace(path)
        return path

    @property
    def onnx(self) -> Path:
        """The uncompressed model; rivals put what they quantise beside it."""
        return self._made("dense.onnx", lambda path: shutil.copyfile(self.model.onnx_file(), path))

    @property
    def inputs(self) -> Path:
        """One feed, .npz."""
        return self._made("inputs.npz", lambda path: np.savez(path, allow_pickle=False, **self._feed(0)))

    def _feed(self, seed: int) -> dict[str, np.ndarray[Any, Any]]:
        return {**self.model.random_inputs(seed), **self.model.input_values}

    @property
    def calibration(self) -> list[Path]:
        """Feeds for static quantisation: real ones where the zoo has them, else random."""

        def write(path: Path, feed: dict[str, Any]) -> None:
            np.savez(path, allow_pickle=False, **feed)

        try:
            feeds = [{**f, **self.model.input_values} for f in self.model.real_inputs(CALIBRATION_FEEDS)]
        except MissingData:
            feeds = [self._feed(seed + 1) for seed in range(CALIBRATION_FEEDS)]
        return [
            self._made(f"calibration{i}.npz", lambda path, feed=feed: write(path, feed)) for i, feed in enumerate(feeds)
        ]

    @property
    def exported(self) -> Path:
        """torch.export's program. Only for torch models."""

        def make(path: Path) -> None:
            import torch

            module = self._module()
            torch.export.save(torch.export.export(module, self.model.example), path)

        return self._made("dense.pt2", make)

    def old_onnx(self, scheme: str) -> Path:
        """ONNX in OLD_OPSET, weights pruned by magnitude as `scheme` says: "fp32", "s<percent>", "s<percent>-block4"."""

        def make(path: Path) -> None:
            import torch

            module = copy.deepcopy(self._module())
            if scheme != "fp32":
                prune(module, scheme)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the older exporter is deprecated
                torch.onnx.export(
                    module, self.model.example, path, opset_version=OLD_OPSET, dynamo=False,
                    input_names=list(self.model.input_names), output_names=list(self.model.output_names),
                )  # fmt: skip

        return self._made(f"old-{scheme}.onnx", make)

    def _module(self) -> torch.nn.Module:
        assert self.model.module is not None, f"{self.model.name} is an ONNX file"
        return self.model.module

    def job(self, family: str, variant: str, threads: int, transformer: bool) -> dict[str, Any]:
        """What a rival's worker is told to prepare."""
        common = {"kind": "model", "variant": variant, "threads": threads, "inputs": str(self.inputs)}
        if family == "deepsparse":
            return {**common, "onnx": str(self.old_onnx(variant)), "variant": "fp32"}
        job = {**common, "onnx": str(self.onnx), "transformer": transformer}
        if "int8" in variant and variant != "int8-dynamic":
            job["calibration"] = [str(path) for path in self.calibration]
        if family == "litert":
            job |= {"module": str(self.exported), "order": list(self.model.input_names)}
        return job


def files_of(model: ZooModel) -> ModelFiles:
    """The files of a zoo model."""
    digest = hashlib.sha256(model.onnx_file().read_bytes())
    digest.update(Path(__file__).read_bytes())
    folder = cache_folder() / "models" / f"{model.name}-{digest.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return ModelFiles(model, folder)


def prune(module: torch.nn.Module, scheme: str) -> None:
    """Zero the smallest weights of every convolution but the first and the depthwise ones, or of every linear layer
    where there are no convolutions; in place.

    "s90": 90 % of the weights, one by one; "s90-block4": of blocks of 4 neighbouring inputs, by their sum of squares.
    """
    import torch

    text, _, block = scheme.partition("-block")
    share, width = int(text.removeprefix("s")) / 100, int(block or 1)
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    chosen = [m for m in convolutions[1:] if m.groups == 1] if convolutions else linear
    for layer in chosen:
        weight = layer.weight.data
        last = weight.movedim(1, -1).contiguous()  # inputs last
        blocks = last.view(-1, width)
        score = blocks.square().sum(1)
        blocks[score.argsort()[: round(share * score.numel())]] = 0
        layer.weight.data = last.movedim(-1, 1).contiguous()
