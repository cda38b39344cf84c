"""Structured removal: channels, heads and blocks that go as wholes, so that what is left is a smaller dense network.

axes.py, reshape.py, moves.py, coupling.py: which indices of which weights belong together. groups.py: the units that can go.
remove.py takes them out of a graph. constants.py, dead.py, scores.py, depth.py, hidden.py, rotation.py, rms.py: what goes.
refit.py, fit.py: the rest takes over.
"""
