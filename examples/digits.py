"""What compression costs: accuracy of a small digit classifier under several schemes, measured with the compiled programs.

    python examples/digits.py [scheme ...]

Uses tests/models/digits.onnx and the images of scikit-learn that its training did not see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sparsec

MODEL = Path(__file__).parents[1] / "tests" / "models" / "digits.onnx"
SCHEMES = ("fp32", "int8", "cb4-g32", "int2-g16", "s50", "s2:4-int8", "s16x1@50-cb4-g32")


def main() -> None:
    """Compile the model once per scheme for a batch of 360 images; print size and accuracy."""
    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    _, x, _, labels = train_test_split(images, bunch.target, test_size=360, random_state=0, stratify=bunch.target)

    print(f"{'scheme':18} {'KB weights':>10} {'accuracy':>9}")
    for scheme in sys.argv[1:] or SCHEMES:
        # The layers are tiny: without min_elements most of them would stay dense.
        recipe = {"version": 1, "rules": [{"targets": "*", "scheme": scheme}], "min_elements": 128}
        program = sparsec.compile(MODEL, recipe=recipe, input_shapes={"N": len(x)}, inputs={"x": x})
        logits = program.run({"x": x})["logits"]
        kilobytes = sum(row.record.nbytes for row in program.report.layers) / 1000
        print(f"{scheme:18} {kilobytes:10.1f} {(logits.argmax(1) == labels).mean():9.3f}")


if __name__ == "__main__":
    main()
