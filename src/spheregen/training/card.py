"""The model card that goes with every trained model."""

from __future__ import annotations

from spheregen.model_folder import ModelInfo
from spheregen.training.recipe import Recipe


def model_card(recipe: Recipe, info: ModelInfo, *, steps: int, total: int) -> str:
    """The `README.md` of a model folder, in the Hugging Face form."""
    model = recipe.model
    classes = ", ".join(info.class_names) if info.class_names else "none (unconditional)"
    channels = "1 channel" if model.image_channels == 1 else f"{model.image_channels} channels"
    progress = f"{steps} of {total} steps" if steps < total else f"{total} steps"
    return f"""---
library_name: spheregen
tags: [image-generation, sphere-encoder]
license: other
---

# {recipe.name}

A spherical image generator (Sphere Encoder, arXiv 2602.15030) trained with SphereGen. {recipe.description}

| | |
|---|---|
| images | {model.image_size} x {model.image_size}, {channels} |
| latent | {model.tokens} tokens of {model.channels} channels on one sphere |
| classes | {classes} |
| data | {info.training["data"]} |
| training | recipe {recipe.name}, {progress} of {recipe.train.batch_size} images, seed {recipe.train.seed} |
| noise | up to {model.max_angle:g} degrees |
| perceptual loss | {info.training["perceptual"]} |

```python
import spheregen as sg

pipe = sg.Pipeline.from_pretrained("path/to/this/folder")
pipe.generate(16, steps={recipe.sampling.steps}, seed=0).images
```

The licence of the weights follows from that of the training data: fill in `license` above before you publish them.
"""
