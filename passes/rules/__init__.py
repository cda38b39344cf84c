"""Rewrite rules of our own, next to those of onnxscript; each file says which sums it relies on."""
