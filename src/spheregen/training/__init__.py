"""Training: recipes, the loop, optimiser, EMA, checkpoints, logs and previews."""
