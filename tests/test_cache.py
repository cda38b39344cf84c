"""The cache on disk: the same bytes with and without it, safe for several writers, bounded."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec import cache, cli
from sparsec.errors import OutputError
from sparsec.passes import encode_cache, insert_decode
from sparsec.passes.sparsify import magnitude
from tests.models import DIGITS, DIGITS_MLP


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


SHAPES = {"N": 1}


def _compress(recipe: str) -> bytes:
    return sparsec.compress(DIGITS, recipe, input_shapes=SHAPES).to_bytes()


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_arrays_come_back_as_they_were(folder: Path) -> None:
    arrays = {"a": np.arange(7, dtype=np.uint8), "none": np.zeros((0, 3), np.float16), "one": np.float32(2).reshape(())}
    assert cache.load("kind", "key") is None
    cache.store("kind", "key", {"x": 1.5}, arrays)
    found = cache.load("kind", "key")
    assert found is not None
    assert found[0] == {"x": 1.5}
    assert list(found[1]) == list(arrays)
    for name, array in arrays.items():
        assert found[1][name].dtype == array.dtype
        assert found[1][name].shape == array.shape
        assert np.array_equal(found[1][name], array)


@pytest.mark.parametrize(
    "head", [b"", b"\xff" * 64, b"7\n", b'{"facts": {}}\n'], ids=["empty", "noise", "number", "facts"]
)
def test_a_damaged_head_is_no_entry(folder: Path, head: bytes) -> None:
    cache.store("kind", "key", {}, {"a": np.arange(100)})
    (folder / "kind" / "key.arrays").write_bytes(head)
    assert cache.load("kind", "key") is None


@pytest.mark.parametrize("keep", [0, 1, 60, 130, -1])
def test_a_truncated_entry_is_no_entry(folder: Path, keep: int) -> None:
    cache.store("kind", "key", {}, {"a": np.arange(100.0)})
    path = folder / "kind" / "key.arrays"
    path.write_bytes(path.read_bytes()[:keep])
    assert cache.load("kind", "key") is None


def test_digest_tells_apart_what_differs() -> None:
    x = np.arange(6, dtype=np.float32)
    parts = [
        (x,), (x.reshape(2, 3),), (x.astype(np.float64),), (x.view(np.int32),), (x[::-1],), (x.tobytes(),), ("ab",),
        ("a", "b"), ("", "ab"), (np.zeros(0),), (),
    ]  # fmt: skip
    assert len({cache.digest(*p) for p in parts}) == len(parts)
    assert cache.digest(x.reshape(2, 3).T) == cache.digest(np.ascontiguousarray(x.reshape(2, 3).T))


def test_writers_at_the_same_time_leave_one_whole_entry(folder: Path) -> None:
    big = np.random.default_rng(0).normal(size=50_000)
    seen: list[bool] = []

    def work() -> None:
        for _ in range(10):
            cache.store("kind", "key", {}, {"a": big})
            found = cache.load("kind", "key")
            seen.append(found is not None and np.array_equal(found[1]["a"], big))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 40
    assert [p.name for p in (folder / "kind").iterdir()] == ["key.arrays"]


def test_a_writer_that_fails_leaves_nothing(folder: Path) -> None:
    path = cache.entry("kind", "key.arrays")

    def fail() -> None:
        with cache.writing(path) as made:
            made.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(path.parent.iterdir()) == []


def test_trim_drops_the_least_recently_used_of_all_kinds(folder: Path) -> None:
    for age, (kind, name) in enumerate([("b", "new.x"), ("a", "pair.o"), ("a", "pair.json"), ("c", "old.x")]):
        path = cache.entry(kind, name)
        path.write_bytes(bytes(1000))
        os.utime(path, (1e9 - age, 1e9 - age))
    assert cache.trim(folder, 10_000, 0) == 0
    assert cache.trim(folder, 3000, 0) == 1000
    assert sorted(p.name for p in folder.glob("*/*")) == ["new.x", "pair.json", "pair.o"]
    assert cache.trim(folder, 2999, 0) == 2000, "files of one entry go together"
    assert [p.name for p in folder.glob("*/*")] == ["new.x"]


def test_trim_keeps_what_was_just_used(folder: Path) -> None:
    path = cache.entry("a", "x.o")
    path.write_bytes(bytes(1000))
    os.utime(path, (1e9, 1e9))
    assert cache.used(path)
    assert cache.trim(folder, 0) == 0
    assert path.exists()


def test_trim_passes_by_what_another_process_dropped(folder: Path) -> None:
    cache.store("kind", "key", {}, {"a": np.arange(100.0)})
    (folder / "kind" / "gone.arrays").symlink_to(folder / "nowhere")  # listed, but no longer there
    assert cache.trim(folder, limit=0, in_use_s=0) > 0
    assert cache.load("kind", "key") is None


@pytest.mark.parametrize(("text", "size"), [("500M", 500 << 20), ("1.5K", 1536), ("7", 7), ("2T", 2 << 40)])
def test_limit(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_SIZE", text)
    assert cache.limit_bytes() == size


def test_wrong_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE_SIZE", "a lot")
    with pytest.raises(OutputError, match="'a lot' is no size; write a number with K, M, G or T"):
        cache.limit_bytes()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="set SPARSEC_CACHE to a folder that can be written"):
        cache.entry("kind", "x")


def test_off_is_a_folder_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", "off")
    first = cache.root()
    assert first.is_dir()
    assert first == cache.root()
    assert first.name.startswith("sparsec-cache-")


@pytest.mark.parametrize("recipe", [None, "cb4-g32", "int8", "s50-int8", "s16x1@50-cb4-g32"])
def test_a_warm_compile_gives_the_same_bytes(folder: Path, tmp_path: Path, recipe: str | None) -> None:
    kernels = Path.home() / ".cache"  # kernels take seconds: both runs use the ones that are there
    kernels = Path(os.environ.get("XDG_CACHE_HOME", kernels)) / "sparsec" / "kernels"
    if kernels.is_dir():
        folder.mkdir()
        (folder / "kernels").symlink_to(kernels)
    cold = sparsec.compile(DIGITS_MLP, recipe=recipe, input_shapes=SHAPES).save(tmp_path / "cold")
    before = {p: p.stat().st_ino for p in folder.glob("[!k]*/*")}
    warm = sparsec.compile(DIGITS_MLP, recipe=recipe, input_shapes=SHAPES).save(tmp_path / "warm")
    assert _contents(cold) == _contents(warm)
    assert {p: p.stat().st_ino for p in folder.glob("[!k]*/*")} == before, "the second compile made an entry again"


def test_a_warm_compress_neither_prunes_nor_encodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = _compress("s2x1@50-cb4-g32")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(magnitude, "mask_of_scores", fail)
    monkeypatch.setattr("sparsec.passes.insert_decode.encode", fail)
    assert _compress("s2x1@50-cb4-g32") == cold
    with pytest.raises(AssertionError, match="encoded again"):
        _compress("s2x1@50-cb3-g32")
    monkeypatch.setattr(encode_cache, "_sources", lambda: "other sources")
    with pytest.raises(AssertionError, match="encoded again"):
        _compress("s2x1@50-cb4-g32")


def test_damaged_entries_are_made_again(folder: Path) -> None:
    cold = _compress("s50-cb4-g32")
    entries = [p for kind in ("weights", "masks", "references") for p in (folder / kind).iterdir()]
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:-1])
    assert _compress("s50-cb4-g32") == cold


def test_no_cache_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_off", False)
    arguments = ["compress", str(DIGITS), str(tmp_path / "a.onnx"), "--recipe", "int8", "--input-shapes", "N=1"]
    assert cli.main([*arguments, "--no-cache"]) == 0
    assert not folder.exists()
    monkeypatch.setattr(cache, "_off", False)
    assert cli.main([*arguments, "--force"]) == 0
    assert (folder / "weights").is_dir()


@pytest.mark.parametrize(
    "rule", ["low_rank: {rank: 3}", "factor: {algorithm: monarch, blocks: 2}", "outliers: {share: 9%}"]
)
def test_factored_weights_are_found_again_and_damaged_ones_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    recipe = f"version: 1\nmin_elements: 0\nrules: [{{scheme: int4, {rule}}}]\n"
    first = _compress(recipe)
    entries = list((folder / "factors").iterdir())
    whole = entries[0].read_bytes()
    cache.store("factors", entries[0].stem, {"words": "", "main": 1, "factors": [["", "int4", 2, 2, 1, 0]]}, {})
    assert _compress(recipe) == first
    assert entries[0].read_bytes() == whole
    monkeypatch.setattr(insert_decode, "factored", None)
    assert _compress(recipe) == first
