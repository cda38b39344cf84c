"""How what takes time says where it is: the one form of progress reports, which the command line draws as bars."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[str, int, int, str], None]
"""Called as progress(stage, done, total, detail); total is 0 where nobody knows it, detail names the pass, layer or kernel at work."""
