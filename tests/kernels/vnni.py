"""Kernels for VNNI on machines without it: the instruction is replaced by its definition, the rest is as it was compiled (for VBMI2: what
LLVM makes of the same code without it)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sparsec.codegen.program import KernelSpec
from sparsec.target import NAMED, Target, host_target

# vpdpbusd: sums of four products of unsigned and signed bytes join the 32 bits of the first operand.
_DEFINITION = """
define internal <{n} x i32> @dpbusd(<{n} x i32> %sum, <{b} x i8> %unsigned, <{b} x i8> %signed) {{
  %u = zext <{b} x i8> %unsigned to <{b} x i32>
  %s = sext <{b} x i8> %signed to <{b} x i32>
  %p0 = mul <{b} x i32> %u, %s
{adds}
  ret <{n} x i32> %r4
}}
"""


def can_stand_in(target: Target) -> bool:
    """Whether `target` is this machine but for VNNI."""
    return target.vnni and set(_without(target).features) <= set(host_target().features)


def _without(target: Target) -> Target:
    return NAMED["x86-avx512" if "avx512" in target.features else "x86-avx2"]


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sparsec-test-")


def compiled(spec: KernelSpec, target: Target, symbol: str) -> Path:
    """Object file of a kernel for `target` that runs without VNNI. TVM stays out of this process."""
    made = Path(_scratch().name) / f"{symbol}.o"
    job = {
        "family": spec.family,
        "params": dict(spec.params),
        "target": asdict(target),
        "symbol": symbol,
        "object": str(made),
    }
    command = [sys.executable, "-m", "tests.kernels.vnni"]
    subprocess.run(command, input=json.dumps(job), text=True, check=True, cwd=Path(__file__).parents[2])
    return made


def replaced(text: str, target: Target) -> str:
    """LLVM IR without the instruction, for the processor without it."""
    n = target.lanes
    name = f"@llvm.x86.avx512.vpdpbusd.{32 * n}"
    assert name in text, "the kernel does not use vpdpbusd"
    text = re.sub(rf"^declare .*{re.escape(name)}\(.*$", "", text, flags=re.MULTILINE).replace(name, "@dpbusd")
    adds = []
    for i in range(4):
        lanes = ", ".join(f"i32 {4 * lane + i}" for lane in range(n))
        total = "%sum" if i == 0 else f"%r{i}"
        adds += [
            f"  %q{i} = shufflevector <{4 * n} x i32> %p0, <{4 * n} x i32> poison, <{n} x i32> <{lanes}>",
            f"  %r{i + 1} = add <{n} x i32> {total}, %q{i}",
        ]
    plain = _without(target)
    text = text.replace(f'"target-cpu"="{target.mcpu}"', f'"target-cpu"="{plain.mcpu}"')
    for extra in sorted(set(target.mattr) - set(plain.mattr), reverse=True):  # "+avx512vbmi" begins "+avx512vbmi2"
        text = text.replace(extra, "+avx2")
    return text + _DEFINITION.format(n=n, b=4 * n, adds="\n".join(adds))


def _compile(job: dict[str, Any]) -> None:
    import tvm

    from sparsec.codegen import tvm_adapter

    lists = {key: tuple(value) for key, value in job["target"].items() if isinstance(value, list)}
    target = Target(**{**job["target"], **lists})
    family, params, symbol = import_module(f"sparsec.codegen.kernels.{job['family']}"), job["params"], job["symbol"]
    function = tvm_adapter.build_prim_func(
        symbol, family.signature(params, target), target, lambda k: family.build(params, k)
    )
    bound = tvm_adapter.tvm_target(target)
    module = tvm.ir.transform.Sequential(tvm_adapter._passes(bound))(tvm.IRModule({symbol: function}))
    library = tvm.get_global_func("target.build.llvm")(module, bound)
    path = Path(job["object"]).with_suffix(".ll")
    path.write_text(replaced(library.inspect_source("ll"), target))
    tvm.get_global_func("ffi.Module.load_from_file.ll")(str(path), "ll").write_to_file(job["object"], "o")


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # TVM would import it
    _compile(json.load(sys.stdin))
