"""``python -m src.eval``: compare the runs of a sweep, or use one trained adapter."""
