"""Sparse products against numpy in float64: every codec and structure, sources, tile and chunk edges, empty and full weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels.spmm_rules import prepare
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.test_decode import CODECS as ALL_CODECS
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]

TARGETS = ["host", "x86-avx2"]


def target_of(name: str) -> Target:
    return host_target() if name == "host" else NAMED[name]


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
    residual: bool = False,
    act: str = "",
    in_place: bool = False,
    **forced: int,
) -> None:
    """One pointwise product with bias."""
    rng = np.random.default_rng([n, k, pixels, len(text)])
    scheme = Scheme.parse(text)
    encoded = encode(rng.normal(size=(n, k)).astype(np.float32), scheme, mask=keep_mask(scheme, n, k, rng, share))
    geometry = {"pixels": pixels, "images": images, "source": layout, "dest": layout}
    made = prepare(unpack(encoded), geometry, target, in_place=in_place, **forced)
    assert made.params.get("in_place", False) == in_place
    p = made.params | {"bias": True, "residual": residual, "act": act, "act_params": []}
    x = rng.normal(size=(images, k, pixels)).astype(np.float32)
    r = rng.normal(size=(images, n, pixels)).astype(np.float32)
    bias = rng.normal(size=n).astype(np.float32)
    want = np.einsum("nk,ikp->inp", decode(encoded).astype(np.float64), x.astype(np.float64)) + bias[:, None]
    size = np.einsum("nk,ikp->inp", np.abs(decode(encoded)).astype(np.float64), np.abs(x).astype(np.float64)).max() + 1
    if residual:
        want += r
    if act == "relu":
        want = np.maximum(want, 0)
    if layout == "tokens":
        x, r, want = (v.swapaxes(1, 2) for v in (x, r, want))
    padded = np.concatenate([bias, np.zeros(-n % p["strip"], np.float32)])
    arrays = [x, *(array for _, array in made.arrays), padded, *([r] if residual else [])]
    (got,) = run_kernel("spmm", p, arrays, target=target, scratch=made.scratch)
    assert np.abs(got.reshape(want.shape) - want).max() <= 1e-6 * size


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("layout", ["planes", "tokens"])
@pytest.mark.parametrize("text", ["s70", "s2x1@70", "s4x1@70"])
def test_structures(text: str, layout: str, name: str) -> None:
    check(text, 37, 53, 67, target_of(name), layout=layout, residual=True, act="relu")
    check(text, 64, 40, 130, target_of(name), layout=layout, chunk=12, ranges=3)


# Codes for several inputs are not for these kernels: test_spmm_rules.py has the refusal.
CODECS = [codec for codec in ALL_CODECS if not codec.startswith("vq")]
STRUCTURES = ["s60", "s2:4", "s3:7", "s16x1@50", "s8x1@60", "s4x4@50", "s1x16@50", "s3x2@50", "s5x1@60"]


@pytest.mark.parametrize("text", [f"{s}-{c}" for s, c in zip(STRUCTURES * 3, CODECS, strict=False)])
def test_codecs(text: str) -> None:
    check(text, 45, 67, 33, host_target(), chunk=24, ranges=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("text", [f"{s}-{c}" for s in STRUCTURES for c in CODECS])
def test_every_scheme(text: str, name: str) -> None:
    check(text, 45, 67, 33, target_of(name), chunk=24, ranges=2)
    check(text, 45, 67, 33, target_of(name), bands=2, layout="tokens")


@pytest.mark.parametrize("layout", ["planes", "tokens"])
@pytest.mark.parametrize("text", ["s50", "s50-cb4-g8", "s50-uint4"])
def test_bands_decode_their_own_rows(text: str, layout: str) -> None:
    check(text, 70, 45, 40, host_target(), layout=layout, bands=3, ranges=2, chunk=16)


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("text", ["s50", "s4x1@50-int8", "s50-cb3-g4"])
def test_densities(text: str, share: float) -> None:
    check(text, 21, 40, 49, host_target(), share=share, chunk=12)


@pytest.mark.parametrize("layout", ["planes", "tokens"])
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (17, 5, 16), (3, 7, 129), (16, 33, 128), (40, 4, 257), (2, 600, 17)], ids=str
)
def test_sizes(size: tuple[int, int, int], layout: str) -> None:
    check("s50", *size, host_target(), layout=layout)


@pytest.mark.parametrize("name", [*TARGETS, "arm"])
@pytest.mark.parametrize("text", ["s90", "s2x1@90", "s4x1@90", "s90-cb4", "s90-int8-c"])
@pytest.mark.parametrize(
    ("n", "k", "pixels", "images"), [(1, 1, 16, 1), (24, 37, 208, 1), (5, 64, 144, 3), (33, 7, 16, 2)]
)
def test_activations_in_place(n: int, k: int, pixels: int, images: int, text: str, name: str) -> None:
    options: dict[str, Any] = {"images": images, "residual": True, "act": "relu", "in_place": True}
    check(text, n, k, pixels, target_of(name), share=0.1, **options)
    if n == 24 and "-" not in text:
        check(text, n, k, pixels, target_of(name), share=0.1, even=2 if "x" in text else 3, **options)


@pytest.mark.parametrize(
    ("text", "pixels", "options"),
    [
        ("s90", 50, {}),
        ("s90-cb4-g8", 64, {}),
        ("s90", 64, {"chunk": 16}),
        ("s90", 64, {"layout": "tokens"}),
        ("s90", 64, {"fixed": True}),
    ],
)
def test_what_is_not_multiplied_in_place(text: str, pixels: int, options: dict[str, Any]) -> None:
    rng, scheme = np.random.default_rng(1), Scheme.parse(text)
    encoded = encode(rng.normal(size=(24, 40)).astype(np.float32), scheme, mask=keep_mask(scheme, 24, 40, rng, 0.1))
    layout = options.pop("layout", "planes")
    geometry = {"pixels": pixels, "images": 1, "source": layout, "dest": layout}
    assert "in_place" not in prepare(unpack(encoded), geometry, host_target(), in_place=True, **options).params


def test_several_images() -> None:
    check("s50", 24, 19, 49, host_target(), images=3, residual=True, ranges=2)
