"""Sparsification algorithms: functions (weights, structure) -> keep-masks, free of graphs."""
