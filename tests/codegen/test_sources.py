"""The sources that decide what a kernel family generates."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsec.codegen.sources import _all_sources, family_digest, family_sources


def names(family: str) -> set[str]:
    return {"/".join(path.parts[-2:]) for path in family_sources(family)}


def forget() -> None:
    """What this process has read of the sources."""
    family_digest.cache_clear()
    _all_sources.cache_clear()


def test_a_family_depends_on_what_it_imports() -> None:
    found = names("gemm")
    assert {"kernels/gemm.py", "kernels/decode.py", "isa/vecmath.py", "isa/epilogue.py"} <= found
    assert {"codegen/tvm_adapter.py", "codegen/program.py"} <= found
    assert "kernels/pool.py" not in found
    assert "codegen/context.py" not in found


def test_relax_depends_on_its_adapter() -> None:
    assert "codegen/relax_adapter.py" in names("relax")
    assert "codegen/relax_adapter.py" not in names("copy")


@pytest.mark.parametrize("family", ["gemm", "copy", "softmax", "relax"])
def test_digest_follows_every_source(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = family_digest(family)
    original = Path.read_bytes
    for source in family_sources(family):
        monkeypatch.setattr(Path, "read_bytes", lambda p, s=source: original(p) + (b"#" if p == s else b""))
        forget()
        assert family_digest(family) != before, source
    monkeypatch.undo()
    forget()
    assert family_digest(family) == before
