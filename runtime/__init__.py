"""The C runtime (src/) and its Python binding. Imports nothing of the rest of sparsec but its errors."""

from sparsec.runtime.binding import Session, StepTime, TensorInfo, load

__all__ = ["Session", "StepTime", "TensorInfo", "load"]
