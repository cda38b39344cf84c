"""What tests of GPU kernels share: the mark of those that need the compiler of the extra `cuda`."""

import pytest

from sparsec.codegen.nvrtc import compiler_version

needs_compiler = pytest.mark.skipif(
    not compiler_version(), reason="neither NVRTC (pip install sparsec[cuda]) nor nvcc is installed"
)
ARCHITECTURES = ("sm_80", "sm_90")
