"""The facts of a model folder beside its weights, and the model card made of it, in the Hugging Face form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spheregen.family.member import Member


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The facts of a model folder beside its weights."""

    class_names: tuple[str, ...] = ()  # empty for an unconditional model
    sampling: Mapping[str, Any] = field(default_factory=dict)  # defaults: steps, schedule, guidance, guidance_at ...
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # `fit` and `background`, see `ImageOptions`
    training: Mapping[str, Any] = field(default_factory=dict)  # recipe, description, data, steps, batch_size, seed ...
    # of weights that were not trained from scratch here: `source` (the file or place they were converted from),
    # `base_model` (the model they were fine-tuned from), `license` (an SPDX id or words)
    provenance: Mapping[str, str] = field(default_factory=dict)
    # of restorations, measured on held-out images: `spectrum` of the model's error, and by `tasks` the best settings
    restoration: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)  # of a model that follows texts, `TextEncoder.identity`
    figures: Mapping[str, str] = field(default_factory=dict)  # what was measured of its samples -> a number or words


def model_card(member: Member, config: Any, info: ModelInfo, *, title: str) -> str:
    """Write the `README.md` of a model folder: what the model is, where it comes from, how it is used."""
    training, origin = info.training, info.provenance
    channels, size, _ = member.image_shape(config)
    rows = [
        ("images", f"{size} x {size}, {channels} channel{'' if channels == 1 else 's'}"),
        *member.facts(config),
        ("classes", _classes(config, info) if member.generates else None),
        ("source", origin.get("source")),
        ("fine-tuned from", origin.get("base_model")),
        ("data", training.get("data")),
        ("training", _training(info)),
        ("perceptual loss", training.get("perceptual")),
        *info.figures.items(),
    ]
    licence = origin.get("license")
    tag = licence if licence and " " not in licence else "other"
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows if value)
    description = f" {training['description']}" if training.get("description") else ""
    usage = member.usage or (
        "import spheregen as sg\n\n"
        'pipe = sg.Pipeline.from_pretrained("path/to/this/folder")\n'
        f"pipe.generate(16, steps={info.sampling.get('steps', 4)}, seed=0).images"
    )
    terms = f"Licence: {licence}" if licence else (
        "The licence of the weights follows from that of the training data: fill in `license` above before you "
        "publish them."
    )  # fmt: skip
    return (
        f"---\nlibrary_name: spheregen\ntags: [{', '.join([*member.tags, 'spheregen'])}]\nlicense: {tag}\n---\n\n"
        f"# {title}\n\n{member.title}, a SphereGen model.{description}\n\n| | |\n|---|---|\n{table}\n\n"
        f"```python\n{usage}\n```\n\n{terms}\n"
    )


def _classes(config: Any, info: ModelInfo) -> str:
    if getattr(config, "text_width", 0):
        return f"none: it follows texts, by the encoder {info.text.get('name')}"
    return ", ".join(info.class_names) or (str(config.num_classes) if config.num_classes else "none (unconditional)")


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
    """Return text that cannot end a table cell or line."""
    return " ".join(str(value).split()).replace("|", "\\|")
