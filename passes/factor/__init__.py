"""Several products for one weight: low-rank branches beside a coded weight, and products of thin or block-diagonal factors.

One algorithm a file, pure functions of a weight [N, K] and, where it is weighed by inputs, their second moment [K, K]; `solve.py`
applies what a rule asks for and codes the factors, `form.py` holds the result.
"""
