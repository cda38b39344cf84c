"""Which target this machine is."""

from __future__ import annotations

import platform

import pytest

from sparsec import target
from sparsec.target import NAMED, host_target


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
    ],
)
def test_host(machine: str, flags: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(target, "_host_flags", lambda: frozenset(flags.split()))
    found = host_target()
    assert found.name == "cpu"
    assert {**found.describe(), "name": name} == NAMED[name].describe()
