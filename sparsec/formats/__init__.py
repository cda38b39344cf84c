"""The weight-format algebra: schemes (structure x codec x scales) and their numpy reference."""

from sparsec.formats.codec_base import Codec
from sparsec.formats.codecs import CODECS
from sparsec.formats.codecs.affine import Affine
from sparsec.formats.codecs.codebook import Codebook
from sparsec.formats.codecs.floats import Float
from sparsec.formats.codecs.ternary import Ternary
from sparsec.formats.encoded import (
    EncodedWeight,
    Unpacked,
    block_mask_of,
    decode,
    encode,
    expand_block_mask,
    unpack,
)
from sparsec.formats.grid import Grid
from sparsec.formats.joined import join_rows
from sparsec.formats.owners import kept_positions, scale_owners, table_owners
from sparsec.formats.recode import codes_of, recode, with_codes, with_side
from sparsec.formats.scales import CHANNEL, NO_SCALES, TENSOR, Scales, group
from sparsec.formats.scheme import GRAMMAR, Scheme
from sparsec.formats.structure import DENSE, NM, STRUCTURES, Block, Dense, FanIn, Structure, Unstructured

__all__ = [
    "CHANNEL",
    "CODECS",
    "DENSE",
    "GRAMMAR",
    "NM",
    "NO_SCALES",
    "STRUCTURES",
    "TENSOR",
    "Affine",
    "Block",
    "Codebook",
    "Codec",
    "Dense",
    "EncodedWeight",
    "FanIn",
    "Float",
    "Grid",
    "Scales",
    "Scheme",
    "Structure",
    "Ternary",
    "Unpacked",
    "Unstructured",
    "block_mask_of",
    "codes_of",
    "decode",
    "encode",
    "expand_block_mask",
    "group",
    "join_rows",
    "kept_positions",
    "recode",
    "scale_owners",
    "table_owners",
    "unpack",
    "with_codes",
    "with_side",
]
