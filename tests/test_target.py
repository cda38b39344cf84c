"""Which target this machine is."""

from __future__ import annotations

import platform

import pytest

from sparsec import target
from sparsec.errors import TargetError
from sparsec.target import NAMED, available_targets, host_target, resolve_target


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("aarch64", "fp asimd", "arm-v8.0"),
        ("aarch64", "fp asimd asimddp", "arm"),
        ("arm64", "fp asimd asimddp sve bf16 i8mm", "arm-i8mm"),
        ("x86_64", "fma avx2", "x86-avx2"),
        ("x86_64", "fma avx2 avx_vnni", "x86-avxvnni"),
        ("x86_64", "fma avx2 avx512f avx512bw avx512dq avx512vl avx512cd", "x86-avx512"),
        ("x86_64", "fma avx2 avx512f avx512bw avx512dq avx512vl avx512cd avx512_vnni", "x86-avx512vnni"),
        (
            "x86_64",
            "fma avx2 avx512f avx512bw avx512dq avx512vl avx512cd avx512_vnni avx512vbmi avx512_vbmi2",
            "x86-avx512vbmi2",
        ),
    ],
)
def test_host(machine: str, flags: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(target, "_host_flags", lambda: frozenset(flags.split()))
    found = host_target()
    assert found.name == "cpu"
    assert {**found.describe(), "name": name} == NAMED[name].describe()


@pytest.mark.parametrize(
    ("name", "gpu", "storage"),
    [
        ("cuda", "sm_90", "float16"),
        ("cuda:bf16", "sm_90", "bfloat16"),
        ("cuda:sm_80", "sm_80", "float16"),
        ("cuda:sm_89:fp16", "sm_89", "float16"),
        ("cuda:sm_120:bf16", "sm_120", "bfloat16"),
    ],
)
def test_cuda_names(name: str, gpu: str, storage: str) -> None:
    found = resolve_target(name)
    assert (found.name, found.gpu, found.storage, found.lanes) == (name, gpu, storage, 1)
    assert found.describe()["gpu"] == gpu
    assert found.arch in ("x86_64", "aarch64")
    assert name.removesuffix(":bf16").removesuffix(":fp16") in available_targets()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda:sm_91", ["unknown target 'cuda:sm_91'", "did you mean 'cuda:sm_90'", "cuda:sm_80"]),
        ("cuda:sm_75", ["unknown target 'cuda:sm_75'", "cuda:sm_80"]),
        ("cuda:sm_90:fp8", ["unknown target 'cuda:sm_90:fp8'", "':bf16'"]),
        ("cuda:sm_90:bf16:x", ["unknown target", "':bf16'"]),
        ("cuda:", ["unknown target 'cuda:'", "':bf16'"]),
        ("cdua", ["unknown target 'cdua'", "did you mean 'cuda'"]),
    ],
)
def test_unknown_cuda_names(name: str, words: list[str]) -> None:
    with pytest.raises(TargetError) as caught:
        resolve_target(name)
    for word in words:
        assert word in str(caught.value)


def test_cuda_needs_a_known_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match=r"riscv64; x86_64 or aarch64"):
        resolve_target("cuda")


def test_targets_of_processors_say_nothing_of_gpus() -> None:
    for known in NAMED.values():  # the keys of cached kernels are made of this
        assert not {"gpu", "storage"} & set(known.describe())
