"""Buffers that kernels of a GPU cannot count are refused when a model is lowered, by name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from sparsec.codegen.cuda.launch import lines
from sparsec.codegen.cuda.limits import MOST
from sparsec.codegen.lower import lower
from sparsec.errors import UnsupportedOpError
from sparsec.target import resolve_target
from tests.cuda.simulator import simulate


def network(rows: int) -> ir.Model:
    """x [rows, 256], w [256, 8] -> sigmoid(x) w [rows, 8]"""
    text = f"""<ir_version: 10, opset_import: ["" : 18]>
    network (float[{rows}, 256] x, float[256, 8] w) => (float[{rows}, 8] y) {{
        [act] a = Sigmoid (x)
        [product] y = MatMul (a, w)
    }}"""
    return ShapeInferencePass()(ir.from_onnx_text(text)).model


def test_more_than_kernels_count() -> None:
    target = resolve_target("cuda")
    assert len(lower(network(MOST // 256), target, "network").steps) == 2
    with pytest.raises(UnsupportedOpError) as raised:
        lower(network(MOST // 256 + 1), target, "network")
    text = str(raised.value)
    assert text.startswith("2 node(s) or input(s) of the model have no lowering for target 'cuda'")
    assert f"Sigmoid node 'act': 'x' has {MOST + 256} elements (float32), a kernel of a GPU counts up to {MOST}" in text
    assert "node 'product'" in text
    assert "take a smaller batch" in text
    assert len(lower(network(MOST // 256 + 1), resolve_target("cpu"), "network").steps) > 0


STORED = """#include "device.cuh"

extern "C" __global__ void __launch_bounds__(32) kernel(const uchar* __restrict__ codes_p, int* __restrict__ y_p) {
  int i = ((int)threadIdx.x);
  y_p[i] = (int)spc_stored<BITS>(codes_p - BEFORE, 0xffffffffu, i, FIRST);
}
"""


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_are_not_found_by_their_bits(bits: int, rng: np.random.Generator) -> None:
    """The last 32 codes of many, whose bits would not fit in 32 bits."""
    first = MOST // 32 * 32
    codes = rng.integers(0, 256, 4 * bits).astype(np.uint8)
    text = STORED.replace("BITS", str(bits)).replace("BEFORE", f"{first * bits // 8}ll").replace("FIRST", str(first))
    found = simulate(text, "kernel", lines(1, 32), [codes, np.zeros(32, np.int32)], orders=["ascending"])[1]
    wanted = np.unpackbits(codes, bitorder="little").reshape(32, bits) @ (1 << np.arange(bits))
    np.testing.assert_array_equal(found, wanted)
