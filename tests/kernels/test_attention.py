"""The attention kernel over strides, masks, groups and sizes, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]
TARGETS = [host_target(), *([NAMED["x86-avx2"]] if host_target().arch == "x86_64" else [])]
# batch, heads, heads of k and v, queries, keys, elements of a head, of a value
SIZES = [
    (1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 1, 37, 8, 8), (1, 2, 2, 3, 16, 32, 24), (1, 8, 4, 1, 256, 8, 8), (1, 3, 3, 17, 31, 48, 48),
    (2, 2, 1, 33, 65, 32, 32), (1, 2, 2, 128, 128, 32, 32), (1, 1, 1, 67, 301, 64, 40), (1, 2, 2, 7, 129, 5, 3),
]  # fmt: skip


def expected(q: Array, k: Array, v: Array, mask: Array | None, causal: bool, scale: float) -> Array:
    """q [B, H, T, D], k [B, KV, S, D], v [B, KV, S, DV] -> [B, H, T, DV] in float64."""
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k.astype(np.float64), groups, 1), np.repeat(v.astype(np.float64), groups, 1)
    scores = q.astype(np.float64) @ k.swapaxes(2, 3) * scale
    if mask is not None:
        scores = scores + mask
    if causal:
        t, s = scores.shape[2:]
        scores = np.where(np.arange(s) <= np.arange(t)[:, None] + s - t, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True) @ v)


def strided(array: Array, side_by_side: bool, turned: bool = False) -> tuple[dict[str, int], Array]:
    """(strides, memory) of a [B, H, T, D] tensor as it is, with the heads side by side in a row, [B, T, H, D], or turned, [B, H, D, T]."""
    _, h, t, d = array.shape
    if turned:
        strides = {"batch": h * d * t, "head": d * t, "row": 1, "element": t, "size": array.size}
        return strides, array.transpose(0, 1, 3, 2)
    if side_by_side:
        return {"batch": t * h * d, "head": d, "row": h * d, "size": array.size}, array.transpose(0, 2, 1, 3)
    return {"batch": h * t * d, "head": t * d, "row": d, "size": array.size}, array


def check(
    size: tuple[int, ...],
    target: Target,
    *,
    mask: str = "",
    causal: bool = False,
    sides: tuple[bool, ...] = (False,) * 4,
    turned: bool = False,
    spread: float = 1.0,
    tolerance: float = 1e-5,
) -> None:
    b, h, kv, t, s, d, dv = size
    rng = np.random.default_rng(size)
    q, key, value = (
        (rng.normal(size=shape) * spread).astype(np.float32) for shape in ((b, h, t, d), (b, kv, s, d), (b, kv, s, dv))
    )
    p: dict[str, Any] = {
        "batch": b, "heads": h, "groups": h // kv, "t": t, "s": s, "d": d, "dv": dv, "scale": d**-0.5, "causal": causal,
        "mask": None,
    }  # fmt: skip
    arrays = []
    for name, array, side in zip("qkv", (q, key, value), sides, strict=False):
        p[name], memory = strided(array, side, turned)
        arrays.append(memory)
    p["out"] = strided(np.empty((b, h, t, dv), np.float32), sides[3], turned)[0]
    added = None
    if mask:
        from sparsec.codegen.kernels import attention

        hidden = rng.random((b, 1, t if mask == "full" else 1, s)) < 0.4
        hidden[..., 0] = False
        added = np.where(hidden, np.float32(-np.inf if mask == "full" else -1e9), rng.normal(size=hidden.shape))
        added = added.astype(np.float32)
        if mask == "full" and not attention.few(p, target):
            padded = np.full((b, s, -(-t // 64) * 64), np.nan, np.float32)
            padded[:, :, :t] = added[:, 0].swapaxes(1, 2)
            p["mask"] = {"batch": padded[0].size, "head": 0, "row": 1, "key": padded.shape[2], "size": padded.size}
            arrays.append(padded)
        else:
            row = s if mask == "full" else 0
            p["mask"] = {"batch": added[0].size, "head": 0, "row": row, "key": 1, "size": added.size}
            arrays.append(added)
    (out,) = run_kernel("attention", p, arrays, target=target)
    want = expected(q, key, value, added, causal, p["scale"])
    got = out.reshape(b, t, h, dv).transpose(0, 2, 1, 3) if sides[3] else out.reshape(want.shape)
    if turned:
        got = out.reshape(b, h, dv, t).transpose(0, 1, 3, 2)
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_sizes(size: tuple[int, ...], target: Target) -> None:
    check(size, target)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("mask", ["", "keys", "full"])
@pytest.mark.parametrize("size", [SIZES[1], SIZES[5], SIZES[7]], ids=lambda s: "x".join(map(str, s)))
def test_masks_with_heads_side_by_side(size: tuple[int, ...], mask: str, target: Target) -> None:
    check(size, target, mask=mask, sides=(True, True, False, True))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("mask", ["", "keys", "full"])
@pytest.mark.parametrize("size", [SIZES[4], SIZES[5], SIZES[6], SIZES[7]], ids=lambda s: "x".join(map(str, s)))
def test_positions_side_by_side(size: tuple[int, ...], mask: str, target: Target) -> None:
    check(size, target, mask=mask, turned=True)


@pytest.mark.parametrize("hidden", [-np.inf, np.finfo(np.float32).min, -1e9])
@pytest.mark.parametrize("t", [1, 21])
def test_a_row_of_hidden_keys_weighs_them_alike(t: int, hidden: float) -> None:
    target = host_target()
    q, k, v = (
        np.random.default_rng(i).normal(size=(1, 1, rows, 8)).astype(np.float32) for i, rows in enumerate((t, 21, 21))
    )
    strides, few = strided(k, False)[0], strided(q, False)[0]
    p = {
        "batch": 1, "heads": 1, "groups": 1, "t": t, "s": 21, "d": 8, "dv": 8, "scale": 1e-3, "causal": False,
        "q": few, "k": strides, "v": strides, "out": few,
        "mask": {"batch": 0, "head": 0, "row": 0, "key": 1, "size": 21},
    }  # fmt: skip
    mask = np.full(21, hidden, np.float32)
    (out,) = run_kernel("attention", p, [q, k, v, mask], target=target)
    np.testing.assert_allclose(out.reshape(t, 8), np.broadcast_to(v[0, 0].mean(0), (t, 8)), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 2, 1, 1, 5, 8, 8), (1, 2, 2, 3, 7, 16, 16), (1, 1, 1, 200, 200, 32, 32)], ids=str)
def test_causal(size: tuple[int, ...]) -> None:
    check(size, host_target(), causal=True)


def test_large_scores_do_not_overflow() -> None:
    # scores of several thousands: their float32 rounding alone moves the weights by a thousandth
    check((1, 2, 2, 40, 150, 64, 32), host_target(), spread=30.0, tolerance=1e-2)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.integers(1, 70), st.integers(70, 300), st.integers(1, 70),
    st.integers(1, 40), st.sampled_from(["", "keys", "full"]), st.booleans(),
)  # fmt: skip
def test_any_size(b: int, groups: int, kv: int, t: int, s: int, d: int, dv: int, mask: str, causal: bool) -> None:
    check((b, groups * kv, kv, t, s, d, dv), host_target(), mask=mask, causal=causal, sides=(False, True, True, False))
