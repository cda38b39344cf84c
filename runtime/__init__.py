"""The C runtime (src/) and its Python binding. Imports nothing of the rest of sparsec but its errors."""

from sparsec.runtime.binding import Session, StepTime, TensorInfo, load
from sparsec.runtime.dlpack import DeviceArray

__all__ = ["DeviceArray", "Session", "StepTime", "TensorInfo", "load"]
