"""Canonical graphs as functions of torch tensors (the extra `torch`); every module but this one imports torch."""
