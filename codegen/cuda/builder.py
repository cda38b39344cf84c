"""What a GPU kernel's `build(params, k)` writes with: the CPU's builder, and threads, shared memory, barriers, device functions."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.tvm_adapter import KernelBuilder
from sparsec.target import Target

Expr = Any


class CudaBuilder(KernelBuilder):
    """Emits one thread's program. `block` and `thread` are the indices (x, y, z); `arg(name)` a buffer of what is stored.

    Arithmetic is scalar; `load` gives float32 for halves and `store` rounds to what the buffer holds. Registers are `local` buffers
    with constant indices: plain Python loops unroll.
    """

    def __init__(
        self,
        target: Target,
        buffers: dict[str, Any],
        launch: Launch,
        block: tuple[Expr, Expr, Expr],
        thread: tuple[Expr, Expr, Expr],
    ) -> None:
        super().__init__(target, buffers, T.int32(0), T.int32(0))
        self.launch = launch
        self.block = block
        self.thread = thread

    def shared(self, size: int, dtype: str = "float32") -> Any:
        """`size` elements that the threads of a block share; at most 48 KiB of them in a kernel (else `dynamic`)."""
        return T.alloc_buffer((size,), dtype, scope="shared")

    def dynamic(self, size: int, dtype: str = "uint8") -> Any:
        """The block's dynamic shared memory, once in a kernel: `Launch.shared_bytes` bytes, 16-byte aligned."""
        return T.alloc_buffer((size,), dtype, scope="shared.dyn")

    def sync(self) -> None:
        """Wait for all threads of the block."""
        T.evaluate(T.tvm_storage_sync("shared"))

    def at(self, buffer: Any, index: Expr) -> Expr:
        """The address of an element, for a device function."""
        return T.address_of(buffer[index])

    def device(self, dtype: str, name: str, *arguments: Expr) -> Expr:
        """The result of a function of device.cuh. It may be evaluated wherever it is written: `let` what is used twice."""
        return T.call_extern(dtype, name, *arguments)

    def do(self, name: str, *arguments: Expr) -> None:
        """Call a function of device.cuh for its effect."""
        T.evaluate(T.call_extern("int32", name, *arguments))

    def let(self, value: Expr, dtype: str = "int32") -> Expr:
        """The value in a register of its own, evaluated here and once."""
        register = T.alloc_buffer((1,), dtype, scope="local")
        T.buffer_store(register, value, [0])
        return register[0]

    def load(self, buffer: Any, index: Expr, lanes: int = 1) -> Expr:
        """`lanes` consecutive elements of `buffer` from `index` on, halves as float32."""
        value = super().load(buffer, index, lanes)
        if buffer.dtype in ("float16", "bfloat16"):
            return T.Cast("float32" if lanes == 1 else f"float32x{lanes}", value)
        return value

    def store(self, buffer: Any, index: Expr, value: Expr, lanes: int = 1) -> None:
        """Store to `lanes` consecutive elements, rounded to halves where the buffer holds them."""
        if buffer.dtype in ("float16", "bfloat16"):
            value = T.Cast(buffer.dtype if lanes == 1 else f"{buffer.dtype}x{lanes}", value)
        super().store(buffer, index, value, lanes)
