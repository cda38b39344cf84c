"""pow2: what no test of all codecs can know, that its levels are powers of two; the rest is tested with every codec."""

from __future__ import annotations

import numpy as np

from sparsec.formats import Scheme, decode, encode


def test_values_are_powers_of_two_times_the_scale() -> None:
    weight = np.random.default_rng().standard_normal((5, 200)).astype(np.float32)
    encoded = encode(weight, Scheme.parse("pow2"))
    assert encoded.scales is not None
    mantissa, exponent = np.frexp(np.abs(decode(encoded) / encoded.scales))
    assert set(mantissa.reshape(-1).tolist()) <= {0.0, 0.5}
    assert exponent[mantissa > 0].min() >= -6
    assert exponent.max() == 1
    assert encoded.nbytes == 5 * 200 // 2 + 5 * 4


def test_powers_of_two_are_exact() -> None:
    weight = np.float32(3) * np.float32([[1, -1, 0.5, -0.25, 0, 1 / 64, -1 / 128, 0.125]])
    np.testing.assert_allclose(decode(encode(weight, Scheme.parse("pow2"))), weight, rtol=1e-6)
