"""The model card that goes with every model folder, in the Hugging Face form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spheregen.models.autoencoder import AutoencoderConfig
from spheregen.models.flow_refiner import FlowRefinerConfig
from spheregen.models.latent_denoiser import LatentDenoiserConfig
from spheregen.tokenizers.encoders import EncoderConfig
from spheregen.tokenizers.published_rae import PublishedRAEConfig
from spheregen.tokenizers.representation import RepresentationConfig

if TYPE_CHECKING:
    from spheregen.model_folder import ModelInfo

_NO_LICENCE = (
    "The licence of the weights follows from that of the training data: fill in `license` above before you "
    "publish them."
)


Config = AutoencoderConfig | LatentDenoiserConfig | FlowRefinerConfig | RepresentationConfig | PublishedRAEConfig


def model_card(config: Config, info: ModelInfo, *, title: str) -> str:
    """The `README.md` of a model folder: what the model is, where it comes from, how it is used."""
    training, origin = info.training, info.provenance
    if isinstance(config, AutoencoderConfig | LatentDenoiserConfig | FlowRefinerConfig):
        what, tags, facts, use = _generator(config, info)
    else:
        what, tags, facts, use = _tokenizer(config)
    rows = [
        *facts,
        ("source", origin.get("source")),
        ("fine-tuned from", origin.get("base_model")),
        ("data", training.get("data")),
        ("training", _training(info)),
        ("perceptual loss", training.get("perceptual")),
    ]
    front = ["library_name: spheregen", f"tags: [{tags}, spheregen]"]
    licence = origin.get("license")
    front.append(f"license: {licence if licence and ' ' not in licence else 'other'}")
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows if value)
    description = f" {training['description']}" if training.get("description") else ""
    return (
        "---\n" + "\n".join(front) + "\n---\n\n"
        f"# {title}\n\n"
        f"{what}, a SphereGen model.{description}\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"```python\n{use}\n```\n\n" + (f"Licence: {licence}\n" if licence else _NO_LICENCE + "\n")
    )


_Parts = tuple[str, str, list[tuple[str, str]], str]  # what it is, its tags, rows of facts, how it is used


def _generator(config: AutoencoderConfig | LatentDenoiserConfig | FlowRefinerConfig, info: ModelInfo) -> _Parts:
    what = "A spherical image generator (Sphere Encoder, arXiv 2602.15030)"
    tags = "image-generation, sphere-encoder"
    if isinstance(config, LatentDenoiserConfig):
        what = "A spherical latent denoiser with its tokenizer (Sphere Latent Encoder, arXiv 2605.15592)"
        tags = "image-generation, sphere-latent-encoder"
    elif isinstance(config, FlowRefinerConfig):
        what = "A spherical image generator, in `source`, and a flow that refines its images (Sphere Flow)"
        tags = "image-generation, sphere-flow"
    classes = ", ".join(info.class_names) or (str(config.num_classes) if config.num_classes else "none (unconditional)")
    facts = [("images", _images(config.image_size, config.image_channels)), *_of_kind(config), ("classes", classes)]
    use = (
        "import spheregen as sg\n\n"
        'pipe = sg.Pipeline.from_pretrained("path/to/this/folder")\n'
        f"pipe.generate(16, steps={info.sampling.get('steps', 4)}, seed=0).images"
    )
    return what, tags, facts, use


def _of_kind(config: AutoencoderConfig | LatentDenoiserConfig | FlowRefinerConfig) -> list[tuple[str, str]]:
    """The rows of facts that differ between generators."""
    if isinstance(config, FlowRefinerConfig):
        told = [
            name for name, width in (("latent", config.latent_channels), ("decoder", config.decoder_width)) if width
        ]
        return [
            ("refiner", f"patches of {config.patch} px, told of {' and '.join(told) or 'nothing'}"),
            ("flow starts at", f"{config.rho:g} noise + {1 - config.rho:g} rough image"),
        ]
    place = " on one sphere" if config.prior == "sphere" else f", prior {config.prior}"
    return [
        ("latent", _latent(config.tokens, config.channels) + place),
        ("noise", f"up to {config.max_angle:g} degrees"),
    ]


def _tokenizer(config: RepresentationConfig | PublishedRAEConfig) -> _Parts:
    if isinstance(config, PublishedRAEConfig):
        decoder = config.decoder
        size, channels = decoder.image_size, decoder.image_channels
        latent = _latent(decoder.tokens, decoder.channels_in)
    else:
        size, channels, latent = config.image_size, config.image_channels, _latent(config.tokens, config.channels)
    facts = [
        ("images", _images(size, channels)),
        ("latent", f"{latent}, each of mean 0 and variance 1"),
        ("encoder", f"{_encoder(config.encoder)}, frozen"),
    ]
    use = (
        "from spheregen.tokenizers.opening import open_tokenizer\n\n"
        'tokenizer = open_tokenizer("path/to/this/folder").tokenizer\n'
        f"latents = tokenizer.encode(images)  # of shape (B, {channels}, {size}, {size}), in [-1, 1]\n"
        "images = tokenizer.decode(latents)"
    )
    what = "An image tokenizer: a frozen encoder and a decoder for its tokens (RAE, arXiv 2510.11690)"
    return what, "image-tokenizer, representation-autoencoder", facts, use


def _images(size: int, channels: int) -> str:
    return f"{size} x {size}, {'1 channel' if channels == 1 else f'{channels} channels'}"


def _latent(tokens: int, channels: int) -> str:
    return f"{tokens} tokens of {channels} channels"


def _encoder(config: EncoderConfig) -> str:
    if config.kind == "feature_net":
        return f"SphereGen's FeatureNet, stage {config.stage}"
    return config.source or str((config.config or {}).get("model_type"))


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
