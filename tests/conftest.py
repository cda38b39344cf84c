"""Settings for all tests."""

import os

# Several test processes share the cores: torch and OpenMP with one thread each finish sooner than with all.
os.environ.setdefault("OMP_NUM_THREADS", "1")
