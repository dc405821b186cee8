"""Restorations measured: degraded held-out images, what a model and simple means make of them, side by side."""
