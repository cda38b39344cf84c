"""Worker process that compiles kernels: JSON jobs on stdin, JSON answers on stdout, one a line.

Job: {"family", "params", "storage"?, "target", "symbol", "object", "assembly"?}, or {"family", "params", "target", "plan": true}.
Answer: {"ok": true, "meta": {...}} or {"ok": false, "error": text}.
Run as `python -m sparsec.codegen.worker`; ends when stdin closes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any, TextIO

from sparsec.codegen.program import KernelSpec, family_module
from sparsec.target import Target


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel to job["object"]; returns the family's metadata (e.g. workspace found while building), or its plan."""
    from sparsec.codegen import tvm_adapter

    fields = dict(job["target"])
    target = Target(**{**fields, "mattr": tuple(fields["mattr"]), "features": tuple(fields["features"])})
    params = job["params"]
    if job.get("plan"):
        found: dict[str, Any] = importlib.import_module(family_module(job["family"])).plan(params)
        return found
    if target.gpu:
        from sparsec.codegen.cuda import objects

        spec = KernelSpec(job["family"], params, tuple(job["storage"]))
        return objects.compile_kernel(spec, target, job["symbol"], job["object"])
    module = importlib.import_module(family_module(job["family"]))
    if hasattr(module, "compile_kernel"):  # families that do not build a single PrimFunc (the Relax long tail)
        meta: dict[str, Any] = module.compile_kernel(params, target, job["symbol"], job["object"])
        return meta
    signature = module.signature(params, target)
    func = tvm_adapter.build_prim_func(job["symbol"], signature, target, lambda k: module.build(params, k))
    tvm_adapter.compile_functions({job["symbol"]: func}, target, job["object"], job.get("assembly"))
    return {}


def main(stdin: TextIO, stdout: TextIO) -> None:
    """Serve jobs until stdin ends."""
    # tvm imports torch when it is installed, which triples its start-up time and is never needed here.
    sys.modules["torch"] = None  # type: ignore[assignment]
    for line in stdin:
        try:
            answer: dict[str, Any] = {"ok": True, "meta": run_job(json.loads(line))}
        except Exception:
            answer = {"ok": False, "error": traceback.format_exc()}
        stdout.write(json.dumps(answer) + "\n")
        stdout.flush()


if __name__ == "__main__":
    # Anything TVM prints must not reach the protocol stream.
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.stdin, protocol)
