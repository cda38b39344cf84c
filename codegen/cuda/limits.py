"""What kernels of a GPU can count: they find their elements with whole numbers of 32 bits."""

from __future__ import annotations

from sparsec.codegen.program import Program

MOST = 2**31 - 2**22
"""Elements of an argument at most. Threads count on to the end of their last round, up to a million elements behind the last one."""


def uncountable(program: Program) -> list[str]:
    """What is wrong with each step that has an argument of more elements than kernels count; steps are as storage.py leaves them."""
    found = []
    for step in program.steps:
        arguments = zip(step.signature.args, step.refs, strict=True)
        arg, ref = max(arguments, key=lambda pair: pair[0].size)
        if arg.size > MOST:
            found.append(
                f"{step.op} node '{step.node}': '{ref.buffer.name}' has {arg.size} elements ({arg.dtype}), "
                f"a kernel of a GPU counts up to {MOST}: take a smaller batch, or split the model"
            )
    return found
