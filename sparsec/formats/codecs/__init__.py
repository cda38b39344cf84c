"""The codecs, one file a family. Every file in this folder is found by itself: to add a codec is to add a file.

docs/adding-a-format.md tells how.
"""

from importlib import import_module
from pkgutil import iter_modules

from sparsec.formats.codec_base import registered

__all__ = ["CODECS"]

for _name in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_name}")

CODECS = registered()
"""Every codec the grammar knows, in the order of file names."""
