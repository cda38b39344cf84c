"""The house has no circle and its layers point one way (docs/architecture.md); the checks are checked on made-up trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sparsec.codegen import zig
from sparsec.codegen.toolchain import CUDA_SOURCES, DEMO_SOURCES, RUNTIME_SOURCES, Toolchain, runtime_folder
from sparsec.target import resolve_target
from tests.dependencies import Graph, c_includes, c_symbol_uses, contract, cycles, python_files, python_imports

ROOT = Path(__file__).parents[1]
# Innermost first: in a checkout these folders may also be seen from sparsec/.
PACKAGES = {
    "sparsec.passes": ROOT / "passes",
    "sparsec.codegen": ROOT / "codegen",
    "sparsec.runtime": ROOT / "runtime",
    "sparsec": ROOT / "sparsec",
    "bench": ROOT / "bench",
}
VOCABULARY = {
    "cache",
    "errors",
    "target",
    "recipe",
    "selectors",
    "factoring",
    "fixed",
    "recovery",
    "structured",
    "formats",
    "ops",
    "built_op",
    "weightless_ops",
    "op_view",
    "onnx_body",
    "decode_body",
    "activations",
    "int8",
    "progress",
    "reference",
}
# What each layer may import; whatever is not named here is face (api, cli, compiled ...) and may import everything.
ALLOWED = {
    "runtime": {"errors"},
    "frontend": {"errors"},
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    "passes": VOCABULARY,
    "codegen": (VOCABULARY | {"runtime"}) - {"recipe"},  # of runtime, the C sources
}
HEAVY = {"torch", "tvm", "matplotlib", "onnxruntime"}
# Modules that are imported only when what they wrap is needed.
ON_DEMAND = {
    "sparsec.codegen.tvm_adapter",
    "sparsec.codegen.relax_adapter",
    *(f"sparsec.codegen.cuda.{name}" for name in ("builder", "generic", "objects", "source")),
    "sparsec.frontend.torch",
    *(
        f"sparsec.passes.differentiable.{name}"
        for name in ("elementwise", "network", "node", "products", "settings", "shapes", "squares")
    ),
    *(f"sparsec.passes.recover.{name}" for name in ("batches", "losses", "run", "train", "weights")),
}


@pytest.fixture(scope="module")
def house() -> Graph:
    return python_imports(python_files(PACKAGES))


def violations(graph: Graph) -> list[str]:
    """Arrows between the parts of sparsec that ALLOWED forbids, as "user -> used"."""
    parts = {n.removeprefix("sparsec."): u for n, u in contract(graph, "sparsec").items()}
    return sorted(
        f"{user} -> {used.removeprefix('sparsec.')}"
        for user, allowed in ALLOWED.items()
        for used in parts.get(user, ())
        if used.removeprefix("sparsec.") not in allowed
    )


def test_modules_have_no_circle(house: Graph) -> None:
    assert len(house) > 100
    assert cycles(house) == []


def test_packages_have_no_circle(house: Graph) -> None:
    packages = ["", *sorted({name.rpartition(".")[0] for name in house} - {""})]
    assert {"sparsec", "sparsec.codegen", "sparsec.codegen.kernels", "sparsec.passes"} <= set(packages)
    assert {p: found for p in packages if (found := cycles(contract(house, p)))} == {}


def test_layers_point_one_way(house: Graph) -> None:
    parts = {n.removeprefix("sparsec.") for n in contract(house, "sparsec")}
    assert set(ALLOWED) <= parts, "ALLOWED names a part that is gone"
    assert violations(house) == []


def test_nothing_imports_bench_or_tests(house: Graph) -> None:
    assert contract(house, "")["sparsec"] == set()


def test_only_the_adapters_import_tvm() -> None:
    users = {name for name, path in python_files(PACKAGES).items() if "tvm" in _foreign(path)}
    adapters = ("tvm_adapter", "relax_adapter", "cuda.builder", "cuda.source")
    assert users == {f"sparsec.codegen.{name}" for name in adapters}


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    modules = sorted(set(python_files({k: v for k, v in PACKAGES.items() if k != "bench"})) - ON_DEMAND)
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def _foreign(path: Path) -> set[str]:
    """First parts of the absolute imports anywhere in a file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_c_files_have_no_circle() -> None:
    objects = Toolchain(resolve_target("cuda")).runtime_objects(demo=True)
    uses = c_symbol_uses(objects)
    assert set(uses) == {path.name for path in runtime_folder().glob("*.c")}
    assert set(uses) == {*RUNTIME_SOURCES, *CUDA_SOURCES, *DEMO_SOURCES}
    assert "spc_pool.c" in uses["spc_runtime.c"]
    assert "spc_runtime.c" in uses["spc_open.c"]
    assert uses["spc_cuda.c"] == {
        f"spc_{n}.c" for n in ("cuda_graph", "cuda_steps", "cuda_load", "cuda_driver", "host")
    }
    assert not any(used in CUDA_SOURCES for user in RUNTIME_SOURCES for used in uses[user]), (
        "bundles for a CPU would grow"
    )
    assert cycles(uses) == []


def test_the_host_file_calls_nothing_of_the_runtime() -> None:
    objects = Toolchain(resolve_target("cpu")).runtime_objects(demo=True)
    assert c_symbol_uses(objects)["spc_host.c"] == set()


def test_c_includes_have_no_circle() -> None:
    includes = c_includes(runtime_folder())
    assert includes["spc_runtime.c"] == {"spc_internal.h"}
    assert includes["spc_internal.h"] == {"spc_runtime.h"}
    assert cycles(includes) == []
    assert not {used for found in includes.values() for used in found if used.endswith(".c")}


# --- the checks find what they are for ---


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_circle_of_modules_is_found(tmp_path: Path) -> None:
    folder = tree(
        tmp_path,
        {
            "__init__.py": "",
            "a.py": "import os\nfrom made.b import thing\n",
            "b.py": "def thing():\n    from . import c\n    return c\n",
            "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.a\n",
            "d.py": "from made import a\n",
        },
    )
    assert cycles(python_imports(python_files({"made": folder}))) == [["made.a", "made.b", "made.c"]]


def test_a_circle_of_packages_without_one_of_modules_is_found(tmp_path: Path) -> None:
    folder = tree(
        tmp_path,
        {
            "left/__init__.py": "",
            "left/low.py": "",
            "left/high.py": "from made.right.middle import x\n",
            "right/__init__.py": "",
            "right/middle.py": "from ..left.low import x\n",
        },
    )
    graph = python_imports(python_files({"made": folder}))
    assert cycles(graph) == []
    assert cycles(contract(graph, "made")) == [["made.left", "made.right"]]


@pytest.mark.parametrize(
    ("user", "text", "found"),
    [
        ("passes/fuse.py", "def f():\n    from sparsec.codegen.lower import lower\n", "passes -> codegen"),
        ("codegen/lower.py", "import sparsec.passes.fuse\n", "codegen -> passes"),
        ("runtime/binding.py", "from sparsec.target import Target\n", "runtime -> target"),
        ("formats/codec.py", "from sparsec import api\n", "formats -> api"),
        ("codegen/plan.py", "from ..recipe import Recipe\n", "codegen -> recipe"),
        ("frontend/onnx.py", "from .. import cli\n", "frontend -> cli"),
    ],
)
def test_a_wrong_arrow_is_found(user: str, text: str, found: str, tmp_path: Path) -> None:
    names = ["passes/fuse", "codegen/lower", "codegen/plan", "runtime/binding", "formats/codec", "frontend/onnx"]
    tops = ["api", "cli", "recipe", "target", "errors"]
    folder = tree(tmp_path, {f"{name}.py": "from sparsec.errors import E\n" for name in [*names, *tops]})
    assert violations(python_imports(python_files({"sparsec": folder}))) == []
    (folder / user).write_text(text)
    assert violations(python_imports(python_files({"sparsec": folder}))) == [found]


def test_a_circle_of_c_files_is_found(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "one.c": '#include "both.h"\nint one(int n) { return n ? two(n - 1) : 0; }\n',
            "two.c": '#include "both.h"\nint two(int n) { return n ? one(n - 1) : 1; }\n',
            "user.c": '#include "both.h"\nstatic int two_(void) { return 2; }\nint user(void) { return one(two_()); }\n',
            "both.h": '#pragma once\n#  include "more.h"\nint one(int n);\n',
            "more.h": '#pragma once\n#include "both.h"\nint two(int n);\n',
        },
    )
    objects = []
    for name in ("one", "two", "user"):
        objects.append(tmp_path / f"{name}.o")
        command = [*zig.command("cc"), "-target", "x86_64-linux-gnu", "-c", f"{name}.c"]
        subprocess.run([*command, "-o", str(objects[-1])], check=True, cwd=tmp_path)
    assert c_symbol_uses(objects) == {"one.c": {"two.c"}, "two.c": {"one.c"}, "user.c": {"one.c"}}
    assert cycles(c_symbol_uses(objects)) == [["one.c", "two.c"]]
    assert cycles(c_includes(tmp_path)) == [["both.h", "more.h"]]
