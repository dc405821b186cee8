"""Training: recipes, the loop, optimiser, EMA, checkpoints, logs and previews."""

from spheregen.family.recipe import Recipe
from spheregen.training.recipe import load_recipe, shipped_recipes
from spheregen.training.trainer import TrainingResult, train

__all__ = ["Recipe", "TrainingResult", "load_recipe", "shipped_recipes", "train"]
