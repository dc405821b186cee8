"""Parts of the app's tabs: places for images and choices that follow the model, and what is on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from spheregen.pipeline import Pipeline, PipelineOutput
from spheregen.texts import MOST_CHARACTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spheregen.serving.studio import Studio

ANY = "any, in turn"
NONE = "no class"
MOST_STEPS = 16
SHOWN = 256
"""Pixels to which small images are enlarged."""
_SHOWN_TEXT = 60  # characters of a prompt below an image


def picture(name: str, **how: Any) -> gr.Image:
    """Return a place for an image that was made."""
    return gr.Image(label=name, show_label=False, interactive=False, elem_id=name, **{"buttons": [], **how})


def condition(studio: Studio, model: gr.Dropdown, default: str) -> tuple[gr.Dropdown, gr.Textbox]:
    """Return the choice of a class, and the place for a prompt: the one that the model follows is shown."""

    def choices(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        classes, texts = studio.classes(name), studio.pipelines[name].model.text_width
        choice = {"choices": [default, *classes], "value": default, "visible": bool(classes)}
        return choice, {"value": "", "visible": texts > 0}

    of_class, of_text = choices(next(iter(studio.pipelines)))
    label = gr.Dropdown(label="Class", filterable=True, **of_class)
    prompt = gr.Textbox(label="Prompt", max_length=MOST_CHARACTERS, elem_classes="prompt", **of_text)

    def follow(name: str) -> list[dict[str, Any]]:
        return [gr.update(**each) for each in choices(name)]

    model.change(follow, model, [label, prompt], api_visibility="private")
    return label, prompt


def dials(studio: Studio, model: gr.Dropdown) -> tuple[gr.Slider, gr.Number, gr.Radio, gr.Slider]:
    """Return the dials of generation at a model's defaults."""

    def defaults(name: str) -> list[dict[str, Any]]:
        pipe = studio.pipelines[name]
        own, fitted = pipe.settings(), pipe.model.fitted is not None
        return [
            {"value": own["steps"]},
            {"value": own["guidance"], "visible": pipe.model.label_width > 0},
            {"value": own["prior"], "visible": fitted},
            {"value": own["temperature"], "visible": fitted},
        ]

    first = defaults(next(iter(studio.pipelines)))
    dials = (
        gr.Slider(1, MOST_STEPS, step=1, label="Steps", **first[0]),
        gr.Number(minimum=0, step=0.1, label="Guidance", **first[1]),
        gr.Radio(["fitted", "sphere"], label="Random points of", **first[2]),
        gr.Slider(0, 2, step=0.05, label="Temperature of the fitted prior", **first[3]),
    )
    model.change(
        lambda name: [gr.update(**each) for each in defaults(name)], model, list(dials), api_visibility="private"
    )
    return dials


def options(
    pipe: Pipeline, label: str | None, steps: int, guidance: float, prior: str, temperature: float
) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": int(steps)}
    if pipe.classes.count or label is not None:
        options["guidance"] = float(guidance)
    if pipe.model.fitted is not None:
        options["prior"] = prior
        if prior == "fitted":
            options["temperature"] = float(temperature)
    return options


def label(chosen: str | None, prompt: str | None) -> str | None:
    """Return the class that a choice stands for, or the prompt; None for none."""
    return (prompt or "").strip() or (None if chosen in (ANY, NONE) else chosen)


def gallery(name: str, columns: int) -> gr.Gallery:
    return gr.Gallery(
        label="Images",
        show_label=False,
        columns=columns,
        object_fit="contain",
        height="auto",
        format="png",
        elem_id=name,
        elem_classes="pixels",
        buttons=["download", "fullscreen"],
        interactive=False,
    )


def canvas(label: str, elem_id: str, ink: str) -> gr.ImageEditor:
    gr.Markdown(label)
    return gr.ImageEditor(
        label=label,
        show_label=False,
        type="pil",
        sources=["upload", "clipboard"],
        brush=gr.Brush(
            colors=["#000000", "#ffffff", "#d55e00", "#0072b2", "#009e73"], default_color=ink, default_size=24
        ),
        layers=False,
        buttons=[],
        canvas_size=(384, 384),
        height=420,
        elem_id=elem_id,
    )


def on_click(button: gr.Button, do: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
    return button.click(do, inputs, outputs, api_visibility="private", show_progress="minimal")


def captioned(output: PipelineOutput, text: str = "") -> list[tuple[Image.Image, str]]:
    """Return the images of an output, enlarged, with seed and class below them."""
    words = []
    for number, seed in enumerate(output.seeds):
        name, prompt = output.class_name(number), output.prompts[number] if output.prompts else ""
        words.append(
            text or ", ".join(part for part in (prompt[:_SHOWN_TEXT], name and f"class {name}", f"seed {seed}") if part)
        )
    return list(zip(enlarged([output.tensor]), words, strict=True))


def enlarged(images: Sequence[torch.Tensor]) -> list[Image.Image]:
    """Return batches (B, C, S, S) in [0, 1] as images that are large enough to look at."""
    batch = torch.cat(list(images))
    scale = max(1, SHOWN // batch.shape[-1])
    whole = PipelineOutput(batch, seeds=tuple(range(len(batch))), labels=None, settings={})
    return [image.resize((image.width * scale,) * 2, Image.Resampling.NEAREST) for image in whole.images]


def flat(drawn: Any) -> Image.Image:
    """Return what is on a canvas, on white."""
    composite = None if drawn is None else drawn.get("composite")
    if composite is None or not composite.getbbox():
        raise gr.Error("drop an image or draw one first", print_exception=False)
    white = Image.new("RGBA", composite.size, "white")
    return Image.alpha_composite(white, composite.convert("RGBA")).convert("RGB")


def painted(drawn: Any) -> tuple[Image.Image, Image.Image]:
    """Return the image of a canvas, and a mask that is white where somebody painted on it."""
    background = None if drawn is None else drawn.get("background")
    if background is None or not background.getbbox():
        raise gr.Error("take an image first, and paint over a part of it", print_exception=False)
    alphas = [np.asarray(layer.convert("RGBA"))[..., 3] for layer in drawn.get("layers") or ()]
    if not any(alpha.any() for alpha in alphas):
        raise gr.Error("paint over what is to be made anew", print_exception=False)
    mask = Image.fromarray(np.maximum.reduce(alphas))
    image = Image.alpha_composite(Image.new("RGBA", background.size, "white"), background.convert("RGBA"))
    return image.convert("RGB"), mask.resize(image.size)
