"""Benchmarks and the model zoo; not part of the installed package."""
