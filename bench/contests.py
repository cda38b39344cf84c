"""What `bench kernels` measures: products, our schemes, the rivals each meets, and the bars to pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["hot", "cold"]

COLD_BYTES = 150_000_000
"""Distinct weights that a cold run rotates over: more than any cache holds."""

# Below this many multiplications a call of Python would show in the time: such layers are timed by the eight.
_SMALL_MACS, _SMALL_LAYERS = 4_000_000, 8


@dataclass(frozen=True)
class Candidate:
    """Something that is timed: `family` is "sparsec" or a rival (environments.py), `variant` a scheme or the rival's format."""

    family: str
    variant: str

    def __str__(self) -> str:
        return f"{self.family} {self.variant}"


@dataclass(frozen=True)
class Product:
    """y[m, n] = x[m, k] . W[n, k]^T."""

    n: int
    k: int
    m: int = 1

    def __str__(self) -> str:
        return f"{self.n}x{self.k}" if self.m == 1 else f"{self.n}x{self.k}, M = {self.m}"

    @property
    def macs(self) -> int:
        return self.m * self.n * self.k


@dataclass(frozen=True)
class Bar:
    """Be `factor` times faster than the best of `rivals`, in this state with one or all threads."""

    factor: float
    rivals: tuple[Candidate, ...]
    state: State = "hot"
    threads: Literal["one", "all", "any"] = "any"
    memory_share: float = 0.0
    """Share of main memory's read bandwidth that the stored bytes must reach, too."""

    def holds_for(self, state: State, threads: int) -> bool:
        """Whether the bar is about this state and number of threads."""
        return self.state == state and (self.threads == "any" or (self.threads == "one") == (threads == 1))


@dataclass(frozen=True)
class Contest:
    """One product: our schemes (with their bars, maybe none) against rivals, in one or two states."""

    product: Product
    schemes: Mapping[str, tuple[Bar, ...]]
    peers: Mapping[str, tuple[Candidate, ...]]
    """For each scheme the rivals that its row is compared with where no bar applies."""
    states: tuple[State, ...] = ("hot",)
    tags: tuple[str, ...] = field(default=())

    @property
    def rivals(self) -> tuple[Candidate, ...]:
        """Everything that any row is compared with, in a fixed order."""
        named = [r for bars in self.schemes.values() for bar in bars for r in bar.rivals]
        named += [r for rivals in self.peers.values() for r in rivals]
        return tuple(sorted(set(named), key=lambda c: (c.family, c.variant)))

    def comparisons(self, scheme: str, state: State, threads: int) -> list[Bar]:
        """The bars of a row, or one without a factor when it has none."""
        bars = [bar for bar in self.schemes[scheme] if bar.holds_for(state, threads)]
        return bars or [Bar(0, self.peers[scheme], state)]


def layers(product: Product, candidate: Candidate, state: State) -> int:
    """How many layers with weights of their own one run goes through."""
    if state == "cold":
        return -(-COLD_BYTES * 8 // round(product.n * product.k * bits(candidate)))
    return _SMALL_LAYERS if product.macs < _SMALL_MACS else 1


# Stored bits a weight, scales left out: a little less than the truth, so that cold runs rotate over enough.
_BITS = {
    "fp32": 32, "int8": 8, "int8w": 8, "int4w": 4, "int4-acc0": 4, "int4-acc4": 4, "int2-acc4": 2, "q8_0": 8, "q4_0": 4, "q4_K": 4,
    "q2_K": 2.25, "iq2_xxs": 2, "tq2_0": 2, "ternary": 2, "int4-g32": 4, "cb4-g32": 4, "cb2-g32": 2, "vq2d4": 2,
    "vq2d4.x2": 2, "s16x1@50-cb4-g32": 2,
}  # fmt: skip


def bits(candidate: Candidate) -> float:
    """Stored bits a weight of one candidate, at least."""
    variant = candidate.variant.removesuffix("-repacked")
    if variant in _BITS:
        return _BITS[variant]
    percent = int(variant.partition("-")[0].removeprefix("s").partition("@")[2] or variant.partition("-")[0][1:])
    return (32 if variant.count("-") == 0 else 4) * (100 - percent) / 100


def of(family: str, *variants: str) -> tuple[Candidate, ...]:
    """Several candidates of one family."""
    return tuple(Candidate(family, v) for v in variants)


FOUR_BIT = (*of("ort", "int4-acc4"), *of("ggml", "q4_0", "q4_0-repacked", "q4_K", "q4_K-repacked"))
TWO_BIT_GGML = of("ggml", "tq2_0", "q2_K", "q2_K-repacked")
TWO_BIT = (*TWO_BIT_GGML, *of("ort", "int2-acc4"))
VECTOR_CODEBOOK = of("ggml", "iq2_xxs")
INT8 = (*of("ort", "int8"), *of("torch_int8", "int8"), *of("openvino", "int8w"))
FP32 = (*of("ort", "fp32"), *of("openvino", "fp32"), *of("openblas", "fp32"))
ALL_FOUR_BIT = (*FOUR_BIT, *of("ort", "int4-acc0"), *of("openvino", "int4w"))

GQSA = "s16x1@50-cb4-g32"
_SCHEMES = ("cb4-g32", GQSA, "cb2-g32", "ternary", "vq2d4", "vq2d4.x2", "int4-g32", "int8")

_GEMV_BARS = {
    "cb4-g32": (Bar(1.6, FOUR_BIT, "hot", "one"), Bar(1.1, FOUR_BIT, "cold", "all", memory_share=0.85)),
    GQSA: (
        Bar(2.4, FOUR_BIT, "hot", "one"),
        Bar(1.9, FOUR_BIT, "cold", "all"),
        Bar(1.0, TWO_BIT, "cold", "all"),
    ),
    "cb2-g32": (Bar(1.2, TWO_BIT_GGML, "hot", "one"), Bar(1.2, TWO_BIT_GGML, "cold", "all")),
    "ternary": (Bar(1.2, TWO_BIT_GGML, "hot", "one"), Bar(1.2, TWO_BIT_GGML, "cold", "all")),
    "vq2d4": (Bar(3.0, VECTOR_CODEBOOK, "hot", "one"), Bar(2.5, VECTOR_CODEBOOK, "cold", "all")),
    "vq2d4.x2": (Bar(3.0, VECTOR_CODEBOOK, "hot", "one"), Bar(2.5, VECTOR_CODEBOOK, "cold", "all")),
    "int4-g32": (),
    "int8": (),
}  # fmt: skip
_PEERS = {
    "cb4-g32": FOUR_BIT, GQSA: FOUR_BIT, "cb2-g32": TWO_BIT, "ternary": TWO_BIT, "vq2d4": VECTOR_CODEBOOK, "vq2d4.x2": VECTOR_CODEBOOK,
    "int4-g32": FOUR_BIT, "int8": INT8,
}  # fmt: skip
# Rivals that do the work of a 4-bit weight or more; those of 2 bits read half as much.
_FOUR_BIT_UP = (*ALL_FOUR_BIT, *INT8, *FP32)

_SMALL = dict.fromkeys(_SCHEMES, ()) | {"cb4-g32": (Bar(1.2, _FOUR_BIT_UP),)}


def _batch(m: int) -> Contest:
    ort4 = of("ort", "int4-acc4")
    bars: tuple[Bar, ...] = (Bar(1.3, ort4),)
    if m == 128:
        bars += (Bar(1.0, (*of("torch_int8", "int8"), *of("ort", "int8"))),)
    schemes: dict[str, tuple[Bar, ...]] = {"cb4-g32": bars, GQSA: (), "int4-g32": (), "int8": ()}
    peers = {"cb4-g32": ort4, GQSA: ort4, "int4-g32": FOUR_BIT, "int8": INT8}
    return Contest(Product(4096, 4096, m), schemes, peers, tags=("gemm",))


CONTESTS = (
    *(Contest(Product(n, k), _GEMV_BARS, _PEERS, ("hot", "cold"), ("gemv",)) for n, k in ((4096, 4096), (11008, 4096))),
    *(Contest(Product(n, k), _SMALL, _PEERS, tags=("gemv", "small")) for n, k in ((1536, 384), (768, 3072))),
    *(_batch(m) for m in (8, 32, 128)),
    *(
        Contest(Product(n, k, m), {"fp32": (Bar(1.0, FP32),)}, {"fp32": FP32}, tags=("fp32",))
        for m, n, k in ((128, 1536, 384), (512, 512, 512))
    ),
)

SWEEP_PERCENT = (50, 60, 70, 80, 90, 95)
SWEEP_TOLERANCE = 1.25
"""Time may exceed what is proportional to the stored weights, seen from 50 %, by this factor."""
SWEEPS = tuple(
    (Product(1024, 1024, m), form)
    for form in ("s{}", "s16x1@{}-cb4-g32")
    for m in (1, 128)
)  # fmt: skip
