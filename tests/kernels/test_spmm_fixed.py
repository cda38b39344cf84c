"""Sparse products in 16-bit fixed point against numpy in float64, within the bound that sparsec/fixed.py states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec import fixed, ops
from sparsec.codegen.kernels import spmm_rules
from sparsec.codegen.kernels.spmm_rules import prepare
from sparsec.codegen.lower import lower
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.programs import lower_and_run, reference
from tests.kernels.test_conv import build, check_conv
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]

TARGETS = {t.name: t for t in (host_target(), NAMED["x86-avx2"], NAMED["arm"])}
EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def check(
    text: str,
    n: int,
    k: int,
    pixels: int,
    target: Target,
    *,
    layout: str = "planes",
    images: int = 1,
    share: float = 0.3,
    act: str = "",
    largest: bool = False,
    **forced: int,
) -> None:
    """One pointwise product with bias and residual; `largest`: sums as large as they can be."""
    rng = np.random.default_rng([n, k, pixels, len(text)])
    scheme = Scheme.parse(text)
    matrix = rng.normal(size=(n, k)).astype(np.float32)
    x = rng.normal(size=(images, pixels, k)).astype(np.float32) * rng.lognormal(size=(images, pixels, 1)).astype("f4")
    if largest:
        matrix, x = np.sign(matrix), np.broadcast_to(np.sign(matrix[np.arange(pixels) % n]), x.shape).copy()
    else:
        x[:, pixels // 2] = 0  # no step of its own
    encoded = encode(matrix, scheme, mask=keep_mask(scheme, n, k, rng, share))
    weight = decode(encoded)
    geometry = {"pixels": pixels, "images": images, "source": layout, "dest": layout}
    made = prepare(unpack(encoded), geometry, target, fixed=True, **forced)
    p = made.params | {"bias": True, "residual": True, "act": act, "act_params": []}
    bias, residual = rng.normal(size=n).astype(np.float32), rng.normal(size=(images, pixels, n)).astype(np.float32)
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    want = product + bias + residual
    want = np.maximum(want, 0) if act == "relu" else want
    bound = np.stack([fixed.error_bound(image, weight, p["chunk"]) for image in x])
    bound += 1e-5 * (np.abs(x.astype(np.float64)) @ np.abs(weight).T + np.abs(bias) + np.abs(residual))
    given = [x, residual] if layout == "tokens" else [v.swapaxes(1, 2) for v in (x, residual)]
    arrays = [
        given[0],
        *(array for _, array in made.arrays),
        np.pad(bias, (0, -n % p["strip"])),
        given[1],
    ]
    (got,) = run_kernel("spmm", p, arrays, target=target, scratch=made.scratch)
    found = got.reshape(given[1].shape)
    found = found if layout == "tokens" else found.swapaxes(1, 2)
    assert np.all(np.abs(found - want) <= bound), np.max(np.abs(found - want) / bound)
    if k > 100 and share and not largest:  # products are rounded: nothing that multiplies floats passes for this
        assert np.abs(found - want).max() > 1e-5 * np.abs(want).max()


SIZES = [(1, 1, 16), (5, 3, 17), (33, 16, 128), (3, 129, 70), (40, 257, 49), (17, 64, 196), (64, 31, 33), (2, 1031, 37)]


@EACH
@pytest.mark.parametrize("layout", ["planes", "tokens"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int, int], layout: str, target: Target) -> None:
    check("s70", *size, target, layout=layout)


@EACH
@pytest.mark.parametrize("text", ["s50", "sf50", "s2x1@60", "s4x1@60", "s3x2@60", "s2:4", "s5x1@70"])
def test_structures(text: str, target: Target) -> None:
    check(text, 37, 45, 70, target, act="relu")
    check(text, 37, 45, 33, target, layout="tokens")


@EACH
@pytest.mark.parametrize("layout", ["planes", "tokens"])
def test_chunks_ranges_and_whole_panels(layout: str, target: Target) -> None:
    check("s80", 50, 131, 75, target, layout=layout, chunk=20, ranges=3)
    check("s80", 50, 131, 75, target, layout=layout, chunk=44, ranges=2, whole=1)
    check("s80", 50, 131, 64, target, layout=layout, chunk=68)
    check("s2x1@80", 50, 131, 75, target, layout=layout, chunk=20, images=1 if layout == "tokens" else 3)


@EACH
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_densities(share: float, target: Target) -> None:
    check("s50", 33, 100, 70, target, share=share)
    check("s2x1@50", 33, 100, 37, target, share=share, layout="tokens")


@EACH
def test_largest_sums_do_not_overflow(target: Target) -> None:
    check("s50", 32, 400, 64, target, share=1.0, largest=True)
    check("s50", 32, 400, 64, target, share=0.1, largest=True, chunk=100)


@EACH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(value: float, target: Target) -> None:
    rng, (n, k, pixels) = np.random.default_rng(3), (7, 20, 40)
    scheme = Scheme.parse("s50")
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), scheme, mask=np.ones((n, k), bool))
    made = prepare(
        unpack(weight), {"pixels": pixels, "images": 1, "source": "planes", "dest": "planes"}, target, fixed=True
    )
    p = made.params | {"bias": False, "residual": False, "act": "", "act_params": []}
    x = rng.normal(size=(k, pixels)).astype(np.float32)
    x[3, 21] = value
    (got,) = run_kernel("spmm", p, [x, *(array for _, array in made.arrays)], target=target, scratch=made.scratch)
    lost = ~np.isfinite(got.reshape(n, pixels))
    assert lost[:, 21].all()
    assert not np.delete(lost, 21, axis=1).any()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products are worth it here."""
    monkeypatch.setattr(spmm_rules, "dense_wins", lambda *_: None)
    monkeypatch.setattr(spmm_rules, "_FIXED_USES", 0)


@pytest.mark.usefixtures("always")
@EACH
def test_convolutions(target: Target) -> None:
    def conv(*args: Any, **geometry: Any) -> None:
        check_conv("s75", *args, target=target, error=4e-3, activations="int16", **geometry)

    conv((1, 6, 17, 19), 5, (3, 3), pads=[1, 1, 1, 1])
    conv((2, 7, 9, 8), 33, (1, 1), residual=True, act="relu")
    conv((1, 9, 15, 14), 12, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2], residual=True, act="relu6")
    conv((1, 4, 33, 37), 6, (5, 2), strides=[2, 3], pads=[2, 0, 1, 3])
    conv((1, 3, 40, 41), 10, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3])
    conv((2, 5, 137), 11, (7,), strides=[3], pads=[2, 4])
    conv((1, 6, 17, 19), 10, (3, 3), pads=[1, 1, 1, 1], group=2)


def _linear(shape: tuple[int, ...], n: int, scheme: str = "s80") -> tuple[Any, dict[str, Array]]:
    rng, parsed = np.random.default_rng([*shape, n]), Scheme.parse(scheme)
    weight = encode(
        rng.normal(size=(n, shape[-1])).astype(np.float32), parsed, mask=keep_mask(parsed, n, shape[-1], rng, 0.2)
    )
    feed = {"x": rng.normal(size=shape).astype(np.float32)}

    def make(values: dict[str, Any]) -> Any:
        return ops.matmul(values["x"], ops.weight_inputs(weight, "w"), activations="int16", name="linear")

    return build(make, feed, (*shape[:-1], n)), feed


def _words(model: Any) -> list[str]:
    """What kind of values the program's products have."""
    params = [step.spec.params for step in lower(model, host_target(), "one").steps]
    return [p["values"]["word"] for p in params if isinstance(p.get("values"), dict)]


@pytest.mark.parametrize("shape", [(1, 33, 96), (2, 19, 96), (37, 96)])
def test_linear_layers(shape: tuple[int, ...]) -> None:
    """Packed as they lie, or with tokens side by side."""
    model, feed = _linear(shape, 120)
    assert _words(model) == ["fixed"]
    (want,), (got,) = reference(model, feed), lower_and_run(model, feed)
    assert 0 < np.abs(got - want).max() <= 2e-3 * np.abs(want).max()


@pytest.mark.parametrize(
    ("shape", "n", "scheme"), [((33, 96), 40, "s80"), ((1, 96), 120, "s80"), ((33, 96), 120, "s80-fp16")]
)
def test_products_that_would_gain_nothing_stay_float(shape: tuple[int, ...], n: int, scheme: str) -> None:
    """Few uses of an input, and one row; 16-bit floats are as good as others."""
    model, _ = _linear(shape, n, scheme)
    assert ("fixed" in _words(model)) == (scheme == "s80-fp16")


def test_step_of_a_row_is_that_of_its_largest_chunk() -> None:
    totals, counts = np.array([[0.0, 3.0, 0.0], [2.0, 1.0, 0.0]]), np.array([[0, 4, 0], [2, 1, 0]])
    steps = fixed.weight_steps(totals, counts)
    np.testing.assert_allclose(steps, [2 / 32766, 3 / 32765, 1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="65534 weights of a row in one chunk"):
        fixed.weight_steps(np.ones((1, 1)), np.full((1, 1), 65534))
