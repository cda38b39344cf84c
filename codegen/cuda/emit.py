"""Prints a program for a GPU: model.c whose steps start kernels by their descriptors. The rest is as for a processor (emit_c.py)."""

from __future__ import annotations

from sparsec.codegen.emit_c import Emitter, comment


class CudaEmitter(Emitter):
    """Steps are `STEP(index, kernel, count, arguments)`: addresses of the GPU's memory, which the runtime hands to the driver."""

    device = "&spc_cuda_device"

    def kernels(self) -> list[str]:
        """The descriptors (machine code, grid, block) that the kernels' object files hold."""
        return [
            '#include "spc_cuda.h"',
            "",
            "/* Kernels: machine code, blocks of the grid, threads of a block. */",
            *(f"extern const spc_cuda_kernel {symbol};" for symbol in sorted(set(self.symbols))),
        ]

    def run_steps(self) -> list[str]:
        """run_steps(): a call for each step, its arguments line by line."""
        lines = [
            "/* index, kernel, arguments */",
            "#define STEP(index, kernel, count, ...) \\",
            "    do { \\",
            "        const void *const arguments[] = {__VA_ARGS__}; \\",
            "        if ((status = spc_cuda_step(run, index, &kernel, count, arguments)) != 0) return status; \\",
            "    } while (0)",
            "",
            "static int32_t run_steps(const spc_run *run)",
            "{",
            "    int32_t status = 0;",
        ]
        if self.program.status is not None:
            place = f"{self.plan.arena[self.program.status]}, {self.program.status.size}"
            lines += ["", "    /* Kernels that may fail note their errors here. */"]
            lines.append(f"    if ((status = spc_cuda_status(run, {place})) != 0) return status;")
        for index, step in enumerate(self.program.steps):
            args = step.signature.args
            assert len(args) == len(step.refs), f"{step.node}: scratch of a GPU kernel is a buffer like all others"
            lines += ["", f"    /* {comment(step.op)} '{comment(step.node)}'"]
            if step.note:
                lines.append(f"     * {comment(step.note)}")
            lines[-1] += " */"
            lines.append(f"    STEP({index}, {self.symbols[index]}, {len(args)},")
            for at, (arg, ref) in enumerate(zip(args, step.refs, strict=True)):
                end = ");" if at == len(args) - 1 else ","
                what = f"{arg.name}: {comment(ref.buffer.name)}, {arg.dtype} x {arg.size}"
                lines.append(f"         {self.pointer(ref)}{end} /* {what} */")
        if not self.program.steps:
            lines.append("    (void)run;")
        return [*lines, "", "    return status;", "}", ""]
