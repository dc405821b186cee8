"""The model card that goes with every model folder, in the Hugging Face form."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spheregen.model_folder import ModelInfo
    from spheregen.models.autoencoder import AutoencoderConfig

_NO_LICENCE = (
    "The licence of the weights follows from that of the training data: fill in `license` above before you "
    "publish them."
)


def model_card(config: AutoencoderConfig, info: ModelInfo, *, title: str) -> str:
    """The `README.md` of a model folder: what the model is, where it comes from, how it is used."""
    training, origin = info.training, info.provenance
    classes = ", ".join(info.class_names) or (str(config.num_classes) if config.num_classes else "none (unconditional)")
    channels = "1 channel" if config.image_channels == 1 else f"{config.image_channels} channels"
    rows = [
        ("images", f"{config.image_size} x {config.image_size}, {channels}"),
        (
            "latent",
            f"{config.tokens} tokens of {config.channels} channels"
            + (" on one sphere" if config.prior == "sphere" else ", a Gaussian cloud"),
        ),
        ("noise", f"up to {config.max_angle:g} degrees"),
        ("classes", classes),
        ("source", origin.get("source")),
        ("fine-tuned from", origin.get("base_model")),
        ("data", training.get("data")),
        ("training", _training(info)),
        ("perceptual loss", training.get("perceptual")),
    ]
    front = ["library_name: spheregen", "tags: [image-generation, sphere-encoder, spheregen]"]
    licence = origin.get("license")
    front.append(f"license: {licence if licence and ' ' not in licence else 'other'}")
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows if value)
    description = f" {training['description']}" if training.get("description") else ""
    steps = info.sampling.get("steps", 4)
    return (
        "---\n" + "\n".join(front) + "\n---\n\n"
        f"# {title}\n\n"
        f"A spherical image generator (Sphere Encoder, arXiv 2602.15030), a SphereGen model.{description}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "```python\nimport spheregen as sg\n\n"
        'pipe = sg.Pipeline.from_pretrained("path/to/this/folder")\n'
        f"pipe.generate(16, steps={steps}, seed=0).images\n```\n\n"
        + (f"Licence: {licence}\n" if licence else _NO_LICENCE + "\n")
    )


def _training(info: ModelInfo) -> str | None:
    training = info.training
    if not training.get("recipe"):
        return None
    done, planned = training.get("steps"), training.get("planned_steps")
    steps = f"{done} of {planned} steps" if planned and planned != done else f"{done} steps"
    batch = f" of {training['batch_size']} images" if "batch_size" in training else ""
    seed = f", seed {training['seed']}" if "seed" in training else ""
    return f"recipe {training['recipe']}, {steps}{batch}{seed}"


def _cell(value: object) -> str:
    """Text that cannot end a table cell or line."""
    return " ".join(str(value).split()).replace("|", "\\|")
