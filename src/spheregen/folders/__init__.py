"""Models on disk, on the Hub and in published checkpoints."""
