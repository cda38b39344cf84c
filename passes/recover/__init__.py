"""Recovery: compressed weights trained on, in their formats (docs/recipes.md). The modules of this folder import torch, but for this
one and stage.py."""
