"""Task metrics of the zoo: each is called with a run function and scores it on the first n labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from .base import Array, Feed, Run, in_order


@dataclass
class Accuracy:
    """Top-1 accuracy in percent; `examples` yields (feed, label); the first output holds the logits."""

    examples: Callable[[], Iterable[tuple[Feed, int]]]
    reference: float
    name: str = "top-1 %"

    def __call__(self, run: Run, n: int | None = None) -> float:
        hits = [int(np.argmax(in_order(run(feed))[0])) == label for feed, label in islice(self.examples(), n)]
        return 100 * float(np.mean(hits))


@dataclass
class Spearman:
    """Rank correlation of the cosine of two sentence vectors (first output, unit length) with human scores."""

    pairs: Callable[[], Iterable[tuple[Feed, Feed, float]]]
    reference: float
    name: str = "Spearman"

    def __call__(self, run: Run, n: int | None = None) -> float:
        from scipy.stats import spearmanr

        cosines, scores = [], []
        for a, b, score in islice(self.pairs(), n):
            cosines.append(float(np.dot(in_order(run(a))[0].ravel(), in_order(run(b))[0].ravel())))
            scores.append(score)
        return float(spearmanr(cosines, scores).statistic)


def negative_log_likelihood(logits: Array, targets: Sequence[int]) -> Array:
    """-log p of each target; logits [T, V], float64 inside."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -z[np.arange(len(targets)), list(targets)]


@dataclass
class Perplexity:
    """exp of the mean negative log likelihood per token over texts; `texts` yields token ids with BOS.

    `logits_of(run, ids)` gives the logits [len(ids) - 1, V] for the tokens after the first.
    """

    texts: Callable[[], Iterable[list[int]]]
    logits_of: Callable[[Run, list[int]], Array]
    reference: float
    name: str = "perplexity"

    def __call__(self, run: Run, n: int | None = None) -> float:
        nll = [negative_log_likelihood(self.logits_of(run, ids), ids[1:]) for ids in islice(self.texts(), n)]
        return float(np.exp(np.concatenate(nll).mean()))


@dataclass
class SpeechShare:
    """Percent of 32 ms chunks in which a voice detector hears speech (p > 0.5), over one recording.

    There are no labels: the score of a changed model is compared with the original's.
    """

    chunks: Callable[[], Iterable[Array]]
    """Yields the inputs [1, 576] in order."""
    state_shape: tuple[int, ...]
    reference: float
    name: str = "speech %"

    def __call__(self, run: Run, n: int | None = None) -> float:
        return 100 * float(np.mean([p > 0.5 for p in islice(self.probabilities(run), n)]))

    def probabilities(self, run: Run) -> Iterator[float]:
        """Speech probability of each chunk; the state that comes out goes into the next step."""
        state = np.zeros(self.state_shape, np.float32)
        for chunk in self.chunks():
            probability, state = in_order(run({"input": chunk, "state": state}))
            yield float(probability.ravel()[0])
