"""Samples as batches: split, shuffled and augmented, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsec.recovery import Augment

__all__ = ["Batch", "Batches", "augmented", "split"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Inputs by name, samples along a new first axis, and the labels of those samples (or None).

    mask: bool [samples, positions], false where a position is padding; None where nothing says so.
    """

    feeds: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    size: int
    mask: torch.Tensor | None = None

    def parts(self, size: int) -> list[Batch]:
        """In order, of at most `size` samples each."""
        found = []
        for start in range(0, self.size, size):
            own = slice(start, min(start + size, self.size))
            feeds = {name: tensor[own] for name, tensor in self.feeds.items()}
            labels = None if self.labels is None else self.labels[own]
            mask = None if self.mask is None else self.mask[own]
            found.append(Batch(feeds, labels, own.stop - own.start, mask))
        return found


@dataclass(frozen=True)
class Batches:
    """Batches of the samples with numbers `members`. labels: [samples, n] or None. mask: the input that is 0 at padding, if any."""

    samples: Sequence[Mapping[str, Array]]
    labels: Array | None
    members: NDArray[np.intp]
    size: int
    mask: str = ""

    def plain(self) -> Iterator[Batch]:
        """In order, as they are."""
        yield from self._of(self.members, None, Augment())

    def shuffled(self, rng: np.random.Generator, augment: Augment) -> Iterator[Batch]:
        """In another order, augmented."""
        yield from self._of(rng.permutation(self.members), rng, augment)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return -(-len(self.members) // self.size)

    def _of(self, members: NDArray[np.intp], rng: np.random.Generator | None, augment: Augment) -> Iterator[Batch]:
        for start in range(0, len(members), self.size):
            part = members[start : start + self.size]
            feeds = {name: np.stack([self.samples[i][name] for i in part]) for name in self.samples[0]}
            if rng is not None:
                feeds = augmented(feeds, augment, rng)
            labels = None if self.labels is None else torch.from_numpy(self.labels[part])
            mask = torch.from_numpy(feeds[self.mask].reshape(len(part), -1) != 0) if self.mask in feeds else None
            yield Batch({name: torch.from_numpy(array) for name, array in feeds.items()}, labels, len(part), mask)


def split(count: int, share: float, seen: int = 0) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(to train on, held out) of `count` >= 2 samples: at least one of each.

    What is held out is spread over the samples that calibration has not `seen` (the first ones), if there are some: on those that
    it has the start looks better than it is.
    """
    first = seen if seen < count else 0
    held = min(max(1, round(count * share)), count - first, count - 1)
    out = np.unique((first + np.arange(1, held + 1) * ((count - first) / held) - 1).round().astype(np.intp))
    return np.setdiff1d(np.arange(count), out), out


def augmented(feeds: dict[str, Array], augment: Augment, rng: np.random.Generator) -> dict[str, Array]:
    """Images [samples, B, C, H, W] of floats, each changed by itself; other inputs stay."""
    if not augment.flip and not augment.shift:
        return feeds
    found = {}
    for name, images in feeds.items():
        if images.ndim == 5 and images.dtype.kind == "f":
            images = _moved(images, augment, rng)
        found[name] = images
    return found


def _moved(images: Array, augment: Augment, rng: np.random.Generator) -> Array:
    far, (height, width) = augment.shift, images.shape[-2:]
    padded = np.pad(images, [(0, 0)] * 3 + [(far, far)] * 2, "edge")
    result = np.empty_like(images)
    for i, (down, right) in enumerate(rng.integers(0, 2 * far + 1, (len(images), 2))):
        result[i] = padded[i, :, :, down : down + height, right : right + width]
    if augment.flip:
        mirrored = rng.random(len(images)) < 0.5
        result[mirrored] = result[mirrored][..., ::-1]
    return result
