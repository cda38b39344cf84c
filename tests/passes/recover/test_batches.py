"""Splits and augmentation."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes.recover.batches import Batches, augmented, split
from sparsec.recovery import Augment


@pytest.mark.parametrize(
    ("count", "share", "held"), [(2, 0.1, 1), (2, 0.9, 1), (10, 0.1, 1), (50, 0.2, 10), (7, 0.99, 6)]
)
def test_split(count: int, share: float, held: int) -> None:
    for seen in (0, count):
        trained, out = split(count, share, seen)
        assert len(out) == held
        assert sorted([*trained, *out]) == list(range(count))


@pytest.mark.parametrize(("seen", "held"), [(1, 9), (30, 9), (86, 4), (89, 1)])
def test_what_calibration_has_not_seen_is_held_out_first(seen: int, held: int) -> None:
    trained, out = split(90, 0.1, seen)
    assert len(out) == held
    assert out.min() >= seen
    assert sorted([*trained, *out]) == list(range(90))


def test_images_are_mirrored_and_moved_each_by_itself() -> None:
    rng = np.random.default_rng()
    images = rng.standard_normal((40, 1, 2, 6, 5)).astype(np.float32)
    other = rng.standard_normal((40, 3)).astype(np.float32)
    found = augmented({"x": images, "y": other}, Augment(flip=True, shift=2), rng)
    assert found["y"] is other
    kinds = set()
    for before, after in zip(images, found["x"], strict=True):
        padded = np.pad(before, [(0, 0), (0, 0), (2, 2), (2, 2)], "edge")
        matches = [
            (down, right, flip)
            for down in range(5) for right in range(5) for flip in (False, True)
            if np.array_equal(after, padded[:, :, down : down + 6, right : right + 5][..., :: -1 if flip else 1])
        ]  # fmt: skip
        assert matches
        kinds.add(matches[0])
    assert len(kinds) > 10
    assert augmented({"x": images}, Augment(), rng)["x"] is images


def test_every_sample_once_an_epoch_with_its_label() -> None:
    feeds = [{"x": np.full((1, 2), i, np.float32)} for i in range(11)]
    batches = Batches(feeds, np.arange(11)[:, None], np.arange(1, 11), 4)
    assert batches.count == 3
    for found in (list(batches.plain()), list(batches.shuffled(np.random.default_rng(1), Augment()))):
        assert [batch.size for batch in found] == [4, 4, 2]
        numbers = np.concatenate([batch.feeds["x"][:, 0, 0].numpy() for batch in found])
        assert sorted(numbers) == list(range(1, 11))
        for batch in found:
            assert batch.labels is not None
            np.testing.assert_array_equal(batch.feeds["x"][:, 0, 0].numpy(), batch.labels[:, 0].numpy())
