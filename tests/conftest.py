"""Settings for all tests."""

import os

from sparsec.codegen import zig

# Several test processes share the cores: torch and OpenMP with one thread each finish sooner than with all.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that call zig themselves use the same cache as the tool chain.
os.environ.update(zig.environment())
