"""A GPU kernel as a host object file: the image and the PTX as constants, and the descriptor that the runtime launches."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sparsec.codegen.cuda.source import KernelSource, cuda_source
from sparsec.codegen.nvrtc import Image, compile_image
from sparsec.codegen.program import KernelSpec
from sparsec.codegen.toolchain import Toolchain, runtime_folder
from sparsec.target import Target


def compile_kernel(spec: KernelSpec, target: Target, symbol: str, object_path: str) -> dict[str, Any]:
    """Compile a kernel into `object_path`, whose one visible symbol is `const spc_cuda_kernel symbol`.

    Returns what is known of it: registers of a thread, bytes of spills and of shared memory (declared and dynamic), grid, block.
    Raises ToolchainError.
    """
    source = cuda_source(spec, target, symbol)
    image = compile_image(source.text, symbol, target.gpu)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.cubin").write_bytes(image.cubin)
        Path(folder, "kernel.ptx").write_bytes(image.ptx)
        c_file = Path(folder, "kernel.c")
        c_file.write_text(_descriptor(source, target, folder, image))
        Toolchain(target).compile(c_file, Path(object_path), includes=[runtime_folder()])
    launch = source.launch
    return {
        "registers": image.registers,
        "spills": image.spills,
        "shared": image.shared + launch.shared_bytes,
        "grid": list(launch.grid),
        "block": list(launch.block),
    }


def _descriptor(source: KernelSource, target: Target, folder: str, image: Image) -> str:
    launch = source.launch

    def dims(values: tuple[int, int, int]) -> str:
        return "{" + ", ".join(f"{v}u" for v in values) + "}"

    return f"""#include "spc_cuda.h"

extern const unsigned char spc_image[] __attribute__((visibility("hidden")));
extern const char spc_ptx[] __attribute__((visibility("hidden")));

__asm__(".section .rodata.{source.symbol}_image,\\"a\\",%progbits\\n"
        ".balign 64\\n"
        "spc_image:\\n.incbin \\"{folder}/kernel.cubin\\"\\n"
        "spc_ptx:\\n.incbin \\"{folder}/kernel.ptx\\"\\n"
        ".text\\n");

__attribute__((visibility("default"))) const spc_cuda_kernel {source.symbol} = {{
    .name = "{source.symbol}",
    .cubin = spc_image,
    .cubin_bytes = {len(image.cubin)}u,
    .ptx = spc_ptx,
    .ptx_bytes = {len(image.ptx)}u,
    .grid = {dims(launch.grid)},
    .block = {dims(launch.block)},
    .shared_bytes = {launch.shared_bytes}u,
    .static_bytes = {image.shared}u,
    .arg_count = {len(source.signature.args)}u,
    .sm = {target.gpu.removeprefix("sm_")}u,
}};
"""
