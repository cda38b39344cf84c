"""The codec classes by name; each lives in its own file of `sparsec.formats.codecs`."""

from sparsec.formats.codec_base import Codec
from sparsec.formats.codecs import CODECS
from sparsec.formats.codecs.affine import Affine
from sparsec.formats.codecs.codebook import Codebook
from sparsec.formats.codecs.floats import Float
from sparsec.formats.codecs.ternary import Ternary
from sparsec.formats.meaning import Side
from sparsec.formats.row_stream import Coded, RowStream

__all__ = ["CODECS", "Affine", "Codebook", "Codec", "Coded", "Float", "RowStream", "Side", "Ternary"]
