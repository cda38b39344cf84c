"""binary: -1 or 1 times a scale."""

from typing import ClassVar

import numpy as np

from sparsec.formats.codec_base import register
from sparsec.formats.fixed_table import FixedTable
from sparsec.formats.row_stream import Coded, RowStream

__all__ = ["Binary"]


@register
class Binary(FixedTable):
    """The sign, times the mean magnitude of the stored values that share the scale: the least squares solution
    (M. Rastegari et al., "XNOR-Net", 2016). There is no zero: a weight of 0 becomes plus the scale.
    """

    token: ClassVar[str] = "binary"
    about: ClassVar[str] = "-1, 1 times a scale"
    levels: ClassVar[tuple[float, ...]] = (-1.0, 1.0)

    def encode(self, stream: RowStream) -> Coded:
        values = stream.shared(stream.values)
        size = np.abs(values)
        if stream.importance is None:
            valid = np.ones(stream.values.shape, bool) if stream.valid is None else stream.valid
            count = np.maximum(stream.shared(valid).sum(2), 1)
        else:
            counts = stream.shared(stream.importance)
            size, count = size * counts, np.maximum(counts.sum(2, dtype=np.float64), 1e-300)
        mean = size.sum(2, dtype=np.float64) / count
        return Coded((stream.values >= 0).astype(np.uint8), stream.stored_scales(mean))
