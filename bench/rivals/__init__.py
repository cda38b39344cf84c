"""Rivals: one file each, run as `python -m bench.rivals.<name>` in the environment that `bench setup` makes for it."""
