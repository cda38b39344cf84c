"""A rival's answers: scores need a function that runs a model, rivals run in processes of their own.

What a score asks is recorded once, the rival answers all of it through a file, and the score is computed on the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.zoo import Run
from bench.zoo.base import Array, Feed

__all__ = ["Answers", "Questions", "save_feeds"]


class Questions:
    """Collects the different inputs that scores run a model on; calling `run` asks.

    answer: runs the uncompressed model, so that scores go on.
    """

    def __init__(self, answer: Run) -> None:
        self._answer = answer
        self.feeds: dict[int, Feed] = {}

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array] | Mapping[str, Array]:
        """The uncompressed model's outputs."""
        self.feeds.setdefault(_key(feed), dict(feed))
        return self._answer(feed)


class Answers:
    """Outputs by input, from the file a rival wrote: arrays "0", "1", .. [S, ...] in the order of the questions."""

    def __init__(self, questions: Questions, path: Path) -> None:
        with np.load(path) as archive:
            columns = [archive[str(i)] for i in range(len(archive.files))]
        self._found = {key: [column[i] for column in columns] for i, key in enumerate(questions.feeds)}

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The rival's outputs; KeyError for what was not asked."""
        return self._found[_key(feed)]


def save_feeds(path: Path, feeds: Sequence[Mapping[str, Array]]) -> None:
    """Feeds of equal names and shapes as one array [S, ...] a name."""
    np.savez(path, allow_pickle=False, **{name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})


def _key(feed: Mapping[str, Array]) -> int:
    return hash(tuple((name, np.ascontiguousarray(feed[name]).tobytes()) for name in sorted(feed)))
