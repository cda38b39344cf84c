"""Rewrites that leave what a model computes as it is and its weights easier to compress: channels in another order, channels scaled.

Both are folded into the constants around a value; which constants those are is found out by following the value's channels
(channels.py, steps.py).
"""
