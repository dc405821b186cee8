"""Frozen networks whose features the losses compare."""
