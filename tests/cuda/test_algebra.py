"""Every scheme has a kernel for few rows; for many rows a kernel, or a reason why it is decoded. Some are run, drawn anew each time."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sparsec.codegen.context import Refusal
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.packing import FORMS, Use
from sparsec.errors import SchemeError
from sparsec.formats import Scheme
from sparsec.formats.encoded import EncodedWeight, encode, unpack
from sparsec.target import Target, resolve_target
from tests.cuda import products
from tests.formats.cases import TOKENS, random_mask

STRUCTURES = (
    "", "s50", "s97.5", "s2:4", "s1:4", "s3:8", "sf75", "s1x4@70", "s3x2@50", "s16x1@50", "s16x16@60", "s32x8@60", "s64x64@70", "s256x8@70",
    "s48x8@60",
)  # fmt: skip
SCALES = ("", "t", "c", "g4", "g8", "g16", "g24", "g64", "g128")
DECODED = re.compile(
    r"(groups of \d+ values are no multiple of 16|codebooks of '.*' change within \d+ rows|the codebook of '.*' takes \d+ bytes"
    r" of shared memory; 65536 are there)"
)
"""Why more than 16 rows multiply decoded weights."""


def schemes() -> list[Scheme]:
    found = set()
    for parts in ((st, codec, scales) for st in STRUCTURES for codec in (*TOKENS, "vq1d12") for scales in SCALES):
        try:
            found.add(Scheme.parse("-".join(part for part in parts if part)))
        except SchemeError:
            continue
    return sorted(found, key=str)


ALL = schemes()


def weight_of(scheme: Scheme, n: int, k: int, rng: np.random.Generator) -> EncodedWeight:
    return encode(rng.standard_normal((n, k)).astype(np.float32), scheme, random_mask(scheme, n, k, rng))


def form_of(weight: EncodedWeight, m: int, target: Target) -> Packed | str:
    """What a kernel takes, or why none does."""
    unpacked, reasons = unpack(weight), []
    for form in FORMS:
        found = form(unpacked, Use(m, m <= 16, target))
        if isinstance(found, Packed):
            return found
        assert isinstance(found, Refusal)
        reasons.append(found.reason)
    return "; ".join(reasons)


@pytest.mark.parametrize("target", ["cuda", "cuda:sm_80:bf16"])
def test_every_scheme_has_a_kernel_or_a_reason(target: str, rng: np.random.Generator) -> None:
    for index in rng.choice(len(ALL), 120, replace=False):
        weight = weight_of(ALL[index], int(rng.integers(1, 100)), int(rng.integers(1, 200)), rng)
        for m in (1, 16):
            found = form_of(weight, m, resolve_target(target))
            assert isinstance(found, Packed), (str(ALL[index]), m, found)
        found = form_of(weight, 40, resolve_target(target))
        assert isinstance(found, Packed) or DECODED.search(found), (str(ALL[index]), found)


@pytest.mark.parametrize("m", [1, 7, 16, 20])
def test_schemes_drawn_at_random(m: int, rng: np.random.Generator) -> None:
    target = resolve_target("cuda")
    for index in rng.choice(len(ALL), 2, replace=False):
        weight = weight_of(ALL[index], int(rng.integers(1, 70)), int(rng.integers(1, 200)), rng)
        if isinstance(packed := form_of(weight, m, target), Packed):
            products.check(weight, packed, m, rng, target)


SINGLE = [
    "int4-g8", "uint3-g24", "vq2d4-g4", "cb4.i5", "cb3.r2-g8", "vq2d2.r4", "vq2d4.x2.i8", "vq3d4.q8.r4", "s50-cb4.r3", "s2x4@60-vq2d2.r4",
    "s16x1@50-cb4.i5-g12",
]  # fmt: skip


@pytest.mark.parametrize("scheme", SINGLE)
def test_codes_that_are_found_one_by_one(scheme: str, rng: np.random.Generator) -> None:
    target = resolve_target("cuda")
    weight = weight_of(Scheme.parse(scheme), 40, int(rng.integers(65, 160)), rng)
    m = int(rng.integers(1, 17))
    packed = form_of(weight, m, target)
    assert isinstance(packed, Packed)
    assert packed.params["scattered"]
    products.check(weight, packed, m, rng, target)
    assert DECODED.search(str(form_of(weight, 17, target)))


def test_a_table_that_shared_memory_does_not_hold(rng: np.random.Generator) -> None:
    target = resolve_target("cuda")
    weight = weight_of(Scheme.parse("vq2d8"), 32, 128, rng)
    packed = form_of(weight, 2, target)
    assert isinstance(packed, Packed)
    assert ("far" in packed.params) == ("65536 are there" in str(form_of(weight, 20, target)))
    products.check(weight, packed, 2, rng, target)
