"""How blocks that share a panel find out which of them is the last: one of them, after all others, and the counter is zero again."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda.launch import lines
from tests.cuda.simulator import ORDERS, simulate

SOURCE = """#include "device.cuh"

extern "C" __global__ void __launch_bounds__(64) kernel(int* __restrict__ counters_p, int* __restrict__ parts_p, int* __restrict__ last_p,
                                                         uint* __restrict__ sums_p, float* __restrict__ y_p) {
  __shared__ alignas(64) float flag[1];
  int group = ((int)blockIdx.x) % 3;
  int thread = ((int)threadIdx.x);
  spc_hand_over(sums_p + ((int)blockIdx.x) * 64 + thread, (float)(((int)blockIdx.x) * 64 + thread));
  int last = spc_is_last(counters_p + group, parts_p[group], flag);
  atomicAdd(last_p + group, last);
  if (last) {
    float total = 0.0f;
    for (int block = group; block < ((int)gridDim.x); block += 3) total += spc_take_over(sums_p + block * 64 + thread);
    atomicAdd(y_p + group * 64 + thread, total);
  }
}
"""


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("blocks", [3, 7, 12])
def test_one_block_is_the_last(blocks: int, order: str) -> None:
    groups = [np.arange(group, blocks, 3) for group in range(3)]
    parts = np.array([group.size for group in groups], np.int32)
    nothing = np.full(blocks * 64, 0xFFFFFFFF, np.uint32)
    arrays = [np.zeros(3, np.int32), parts, np.zeros(3, np.int32), nothing, np.zeros(3 * 64, np.float32)]
    counters, _, last, _, sums = simulate(SOURCE, "kernel", lines(blocks, 64), arrays, orders=[order])
    assert not counters.any()
    assert last.tolist() == [64] * 3  # all threads of one block
    wanted = np.stack([(group[:, None] * 64 + np.arange(64)).sum(0) for group in groups])
    np.testing.assert_array_equal(sums.reshape(3, 64), wanted)
