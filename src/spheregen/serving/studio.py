"""The app: a page on which people generate, edit, join and explore images, by Gradio on the engine.

Each tab is a function that lays it out and says what its buttons do; all of them ask the engine, so that several people
share a model as the callers of the service do.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from spheregen.data import save_animation
from spheregen.errors import ConfigError, SphereGenError
from spheregen.folders.summary import CARD
from spheregen.pipeline import Pipeline, PipelineOutput
from spheregen.pipeline.output import RestorationOutput
from spheregen.pipeline.tasks import NOISE, TASKS, task_operator
from spheregen.serving.engine import Engine
from spheregen.texts import MOST_CHARACTERS
from spheregen.training.log import LOG
from spheregen.training.plots import draw_curves, read_series
from spheregen.training.preview import FOLDER as PREVIEWS

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio reads it
import gradio as gr

if TYPE_CHECKING:
    from collections.abc import Sequence

ANY = "any, in turn"
NONE = "no class"
MOST_IMAGES, MOST_FRAMES, MOST_STEPS = 36, 32, 16
SHOWN = 256
"""Pixels to which small images are enlarged."""
PAD = 7
"""Images along a side of the pad."""
_SHOWN_TEXT = 60  # characters of a prompt below an image
_KEPT = 20  # folders of files that were made: the page holds copies
FONTS = ("system-ui", "sans-serif")
CSS = """
.pixels img { image-rendering: pixelated; }
.grid-wrap { max-height: none !important; }
.caption-label { font-size: 11px !important; padding: 1px 5px !important; }
#card thead { display: none; }
#card td:first-child { white-space: nowrap; }
footer { display: none !important; }
"""


class Studio:
    """What the tabs have in common: the models, the engine, and a folder for files that are made."""

    def __init__(self, pipelines: Mapping[str, Pipeline], cards: Mapping[str, str], runs: Path | None) -> None:
        self.pipelines, self.cards, self.runs = dict(pipelines), dict(cards), runs
        self.engine = Engine(self.pipelines)
        self._made = tempfile.TemporaryDirectory(prefix="spheregen-app-")
        self.folder = Path(self._made.name)

    def close(self) -> None:
        """End the engine, and remove what was made."""
        self.engine.close(10)
        self._made.cleanup()

    def place_for_files(self) -> Path:
        """Return a new folder; of those before, the last ones are kept."""
        for old in sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def run(self, name: str, work: Callable[[Pipeline], Any], images: int = 1) -> Any:
        """Do work on a model; what a person did wrong is told on the page."""
        try:
            return self.engine.run(name, work, images=images)
        except SphereGenError as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error

    def classes(self, name: str) -> list[str]:
        """Return the names of a model's classes."""
        known = self.pipelines[name].classes
        return [known.name(number) for number in range(known.count)]


def build(studio: Studio) -> gr.Blocks:
    """Return the page."""
    names = list(studio.pipelines)
    page: gr.Blocks
    with gr.Blocks(title="SphereGen", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# SphereGen\nImages in one to a few steps, on a sphere.")
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
        with gr.Tabs():
            for title, tab in _TABS.items():
                with gr.Tab(title):
                    tab(studio, model)
            if studio.runs is not None:
                with gr.Tab("Training"):
                    _training(studio)
    return page


def launch(studio: Studio, *, host: str, port: int, browser: bool = False) -> tuple[gr.Blocks, str]:
    """Serve the page from threads of this process, and return it with its address.

    Args:
        browser: open it.

    Raises:
        ConfigError: the address cannot be bound.
    """
    page = build(studio)
    theme = gr.themes.Soft(primary_hue="blue", font=FONTS, font_mono=("ui-monospace", "monospace"))
    try:
        _, address, _ = page.queue(default_concurrency_limit=8).launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            theme=theme,
            css=CSS,
            max_file_size="16mb",
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
        )
    except OSError as error:
        raise ConfigError(f"nothing can listen at {host}:{port}; choose another --port or --host") from error
    return page, str(address)


# the tabs -------------------------------------------------------------------------------------------------------------


def _generate(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            label, prompt = _condition(studio, model, ANY)
            count = gr.Slider(1, MOST_IMAGES, value=9, step=1, label="Images")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed of the first one", elem_id="seed")
            steps, guidance, prior, temperature = _dials(studio, model)
            with gr.Row():
                make = gr.Button("Generate", variant="primary", elem_id="generate")
                others = gr.Button("Other seeds", elem_id="others")
        with gr.Column(scale=2, min_width=320):
            made = _gallery("made", columns=3)
            facts = gr.Markdown("Choose an image for more like it.", elem_id="facts")
            with gr.Row():
                angle = gr.Slider(1, 90, value=25, step=1, label="How far, in degrees")
                more = gr.Button("More like this", elem_id="more")
    chosen = gr.State(0)
    shown = gr.State(None)

    def generate(name: str, of: str, text: str, count: int, seed: int, steps: int, *dials: Any) -> Any:
        label = _label(of, text)
        options = _options(studio.pipelines[name], label, steps, *dials)
        output = studio.run(
            name, lambda pipe: pipe.generate(int(count), labels=label, seed=int(seed), **options), int(count)
        )
        return _captioned(output), output.images, 0

    def vary(
        name: str, images: Sequence[Image.Image] | None, number: int, angle: float, of: str, text: str, seed: int
    ) -> Any:
        if not images:
            raise gr.Error("generate images first, and choose one", print_exception=False)
        image, label = images[min(number, len(images) - 1)], _label(of, text)
        output = studio.run(name, lambda pipe: pipe.vary(image, 9, angle=angle, labels=label, seed=int(seed)), 9)
        return _captioned(output, f"{angle:g} degrees away"), output.images, 0

    def choose(event: gr.SelectData) -> tuple[int, str]:
        caption = (event.value or {}).get("caption", "") if isinstance(event.value, dict) else ""
        return int(event.index), f"Chosen: image {int(event.index) + 1}. {caption}"

    inputs = [model, label, prompt, count, seed, steps, guidance, prior, temperature]
    outputs = [made, shown, chosen]
    _on(make, generate, inputs, outputs)
    others.click(lambda seed, count: int(seed) + int(count), [seed, count], seed, api_visibility="private").then(
        generate, inputs, outputs, api_visibility="private"
    )
    _on(more, vary, [model, shown, chosen, angle, label, prompt, seed], outputs)
    made.select(choose, None, [chosen, facts], api_visibility="private")


def _edit(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            drawn = _canvas("An image: drop it, or draw", elem_id="edit-image", ink="#000000")
            label, prompt = _condition(studio, model, NONE)
            strength = gr.Slider(0, 1, value=0.25, step=0.01, label="Strength")
            steps = gr.Slider(1, MOST_STEPS, value=4, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            angle = gr.Slider(0, 90, value=30, step=1, label="Angle of variations, in degrees")
            with gr.Row():
                make = gr.Button("Edit", variant="primary", elem_id="edit")
                more = gr.Button("Vary", elem_id="vary")
        with gr.Column(scale=2, min_width=320):
            made = _gallery("edited", columns=3)

    def edit(name: str, drawn: Any, of: str, text: str, strength: float, steps: int, seed: int) -> Any:
        image, label = _flat(drawn), _label(of, text)

        def work(pipe: Pipeline) -> tuple[torch.Tensor, PipelineOutput]:
            options: Any = (
                {} if pipe.model.fitted is not None and label else {"steps": int(steps), "strength": strength}
            )
            return pipe.reconstruct(image, label), pipe.edit(image, label, seed=int(seed), **options)

        seen, output = studio.run(name, work)
        titles = ["as the model sees it", *(f"step {step + 1}" for step in range(len(output.trajectory)))]
        return list(zip(_enlarged([seen, *output.trajectory]), titles, strict=True))

    def vary(name: str, drawn: Any, of: str, text: str, angle: float, seed: int) -> Any:
        image, label = _flat(drawn), _label(of, text)
        output = studio.run(name, lambda pipe: pipe.vary(image, 9, angle=angle, labels=label, seed=int(seed)), 9)
        return _captioned(output, f"{angle:g} degrees")

    _on(make, edit, [model, drawn, label, prompt, strength, steps, seed], made)
    _on(more, vary, [model, drawn, label, prompt, angle, seed], made)


def _interpolate(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            ends = gr.Radio([("two ends", 2), ("four corners", 4)], value=2, label="Between", elem_id="ends")
            gr.Markdown("Each end is the image of a seed, or one of yours.")
            seeds, photos = [], []
            with gr.Row():
                for number in range(4):
                    with gr.Column(min_width=130, visible=number < 2) as column:
                        seeds.append(gr.Number(3 + 11 * number, precision=0, minimum=0, label=f"Seed {number + 1}"))
                        photos.append(
                            gr.Image(
                                label=f"or image {number + 1}", type="pil", height=120, buttons=[], sources=["upload"]
                            )
                        )
                    if number > 1:
                        ends.change(
                            lambda chosen: gr.update(visible=chosen == 4), ends, column, api_visibility="private"
                        )
            frames = gr.Slider(2, MOST_FRAMES, value=12, step=1, label="Images along a side")
            label, prompt = _condition(studio, model, ANY)
            make = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
        with gr.Column(scale=2, min_width=320):
            sheet = gr.Image(
                label="The way",
                show_label=False,
                interactive=False,
                elem_id="way",
                elem_classes="pixels",
                buttons=["download"],
            )
            moving = gr.Image(
                label="Moving",
                show_label=False,
                interactive=False,
                elem_id="moving",
                elem_classes="pixels",
                buttons=[],
                type="filepath",
            )
            saved = gr.Files(label="GIF" + (" and MP4" if shutil.which("ffmpeg") else "; MP4 with ffmpeg installed"))

    def interpolate(name: str, ends: int, frames: int, of: str, text: str, *given: Any) -> Any:
        here = [seed if photo is None else photo for seed, photo in zip(given[:4], given[4:], strict=True)][:ends]
        frames = int(frames) if ends == 2 else min(int(frames), 8)
        points = [end if isinstance(end, Image.Image) else int(end) for end in here]
        count = frames ** (ends // 2)
        output = studio.run(name, lambda pipe: pipe.interpolate(points, frames, labels=_label(of, text)), count)
        columns = frames if ends == 4 else min(frames, 6)
        files = []
        scale = max(1, SHOWN // output.tensor.shape[-1])
        walk = output.tensor if ends == 2 else _there_and_back(output.tensor, frames)
        folder = studio.place_for_files()
        for suffix in (".gif", ".mp4") if shutil.which("ffmpeg") else (".gif",):
            files.append(folder / f"interpolation{suffix}")
            save_animation(walk, files[-1], fps=8, bounce=True, scale=scale)
        return output.grid(columns), str(files[0]), [str(file) for file in files]

    _on(make, interpolate, [model, ends, frames, label, prompt, *seeds, *photos], [sheet, moving, saved])


def _inpaint(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            drawn = _canvas("An image; paint over what is to be made anew", elem_id="inpaint-image", ink="#d55e00")
            example = gr.Button("Take an image of the model", elem_id="example")
            label, prompt = _condition(studio, model, NONE)
            steps = gr.Slider(1, MOST_STEPS, value=8, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            make = gr.Button("Inpaint", variant="primary", elem_id="inpaint")
        with gr.Column(scale=2, min_width=320):
            made = _gallery("inpainted", columns=3)

    def take(name: str, seed: int) -> Any:
        output = studio.run(name, lambda pipe: pipe.generate(1, seed=int(seed)))
        return _enlarged([output.tensor])[0]

    def inpaint(name: str, drawn: Any, of: str, text: str, steps: int, seed: int) -> Any:
        background, mask = _painted(drawn)

        def work(pipe: Pipeline) -> list[torch.Tensor]:
            options: Any = {"labels": _label(of, text), "steps": int(steps)}
            return [pipe.inpaint(background, mask, seed=int(seed) + n, **options).tensor for n in range(3)]

        made = studio.run(name, work, 3)
        return list(zip(_enlarged(made), (f"seed {int(seed) + n}" for n in range(3)), strict=True))

    _on(example, take, [model, seed], drawn)
    _on(make, inpaint, [model, drawn, label, prompt, steps, seed], made)


def _restore(studio: Studio, model: gr.Dropdown) -> None:
    gr.Markdown("What happened to the image is known; the model finds the likely image behind it.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            given = gr.Image(type="pil", image_mode=None, label="A degraded image", height=220, elem_id="degraded")
            tasks = [task for task in TASKS if task != "inpaint"]
            task = gr.Dropdown(tasks, value="denoise", label="Task", elem_id="task")
            kernel = gr.Textbox("gaussian:1", label="Kernel of deblur: gaussian:SIGMA or motion:LENGTH:DEGREES")
            factor = gr.Slider(2, 8, value=2, step=1, label="Factor of superres")
            label, prompt = _condition(studio, model, NONE)
            steps = gr.Slider(1, 50, value=20, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            make = gr.Button("Restore", variant="primary", elem_id="restore")
        with gr.Column(scale=2, min_width=320):
            made = _gallery("restored", columns=3)

    def restore(
        name: str,
        given: Image.Image | None,
        task: str,
        kernel: str,
        factor: int,
        of: str,
        text: str,
        steps: int,
        seed: int,
    ) -> Any:
        if given is None:
            raise gr.Error("drop a degraded image first", print_exception=False)
        noise = NOISE.get(task, 0.0)
        known: dict[str, Any] = {"kernel": kernel} if task == "deblur" else {}
        if task == "superres":
            known = {"factor": int(factor)}

        def work(pipe: Pipeline) -> RestorationOutput:
            operator = task_operator(pipe, task, [given], **known)
            options: Any = {"labels": _label(of, text), "steps": int(steps), "seed": int(seed)}
            return pipe.restore([given], operator, noise=noise, **options)

        output = studio.run(name, work)
        shown = [output.trajectory[number - 1] for number in sorted({1, (len(output.trajectory) + 1) // 2})]
        titles = ["the start", "step 1", "half way", "restored"]
        return list(zip(_enlarged([output.start, *shown, output.tensor]), titles, strict=False))

    _on(make, restore, [model, given, task, kernel, factor, label, prompt, steps, seed], made)


def _explore(studio: Studio, model: gr.Dropdown) -> None:
    gr.Markdown("Four seeds are the corners of a pad on the sphere. Touch it, or move by the sliders.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            label, prompt = _condition(studio, model, ANY)
            corners: list[gr.Number] = []
            for half in ("Upper", "Lower"):
                with gr.Row():
                    for end in ("left", "right"):
                        corner = gr.Number(len(corners), precision=0, minimum=0, label=f"{half} {end}", min_width=120)
                        corners.append(corner)
            with gr.Row():
                draw = gr.Button("Draw the pad", variant="primary", elem_id="draw-pad")
                others = gr.Button("Other corners")
            across = gr.Slider(0, 1, value=0.5, step=0.01, label="Across", elem_id="across")
            down = gr.Slider(0, 1, value=0.5, step=0.01, label="Down", elem_id="down")
        with gr.Column(scale=1, min_width=300):
            pad = gr.Image(
                label="The pad",
                show_label=False,
                interactive=False,
                elem_id="pad",
                elem_classes="pixels",
                buttons=[],
                type="pil",
            )
        with gr.Column(scale=1, min_width=300):
            here = gr.Image(
                label="Here",
                show_label=False,
                interactive=False,
                elem_id="here",
                elem_classes="pixels",
                buttons=["download"],
            )

    def pad_of(name: str, of: str, text: str, *seeds: Any) -> Any:
        ends = [int(seed) for seed in seeds]
        output = studio.run(name, lambda pipe: pipe.interpolate(ends, PAD, labels=_label(of, text)), PAD**2)
        return output.grid(PAD)

    def point(name: str, of: str, text: str, across: float, down: float, *seeds: Any) -> Any:
        label = _label(of, text)

        def work(pipe: Pipeline) -> torch.Tensor:
            ends = pipe.generate(seeds=[int(seed) for seed in seeds], labels=label)
            points = pipe.encode(list(ends.tensor), label)
            way, x, y = pipe.model.prior.slerp, torch.tensor([across]), torch.tensor([down])
            upper, lower = way(points[:1], points[1:2], x), way(points[2:3], points[3:], x)
            return pipe.decode(way(upper, lower, y), label)

        return _enlarged([studio.run(name, work, 4)])[0]

    def touched(image: Image.Image, event: gr.SelectData) -> tuple[float, float]:
        x, y = event.index
        return round(min(max(x / image.width, 0), 1), 2), round(min(max(y / image.height, 0), 1), 2)

    inputs = [model, label, prompt, *corners]
    place = [model, label, prompt, across, down, *corners]
    private: Any = {"api_visibility": "private"}
    _on(draw, pad_of, inputs, pad).then(point, place, here, **private)
    others.click(lambda *seeds: [int(seed) + 4 for seed in seeds], corners, corners, **private).then(
        pad_of, inputs, pad, **private
    ).then(point, place, here, **private)
    pad.select(touched, pad, [across, down], **private)
    for slider in (across, down):
        slider.change(point, place, here, show_progress="hidden", trigger_mode="always_last", **private)


def _model(studio: Studio, model: gr.Dropdown) -> None:
    def about(name: str) -> str:
        return studio.cards[name]

    text = gr.Markdown(about(next(iter(studio.pipelines))), elem_id="card")
    model.change(about, model, text, api_visibility="private")


def _training(studio: Studio) -> None:
    def runs() -> list[str]:
        assert studio.runs is not None
        return sorted(path.parent.relative_to(studio.runs).as_posix() for path in studio.runs.glob(f"**/{LOG}"))

    def look(name: str | None) -> tuple[str, Any, Any]:
        if name not in runs():  # nothing else of the disk can be asked for
            return "There is no run yet; start one by `spheregen train`.", None, None
        assert studio.runs is not None
        run = studio.runs / name
        try:
            series = read_series(run)
            curves = studio.place_for_files() / "curves.png"
            draw_curves({name: series}, curves)
        except SphereGenError as error:
            return " ".join(str(error).split()), None, None
        previews = sorted((run / PREVIEWS).glob("*.png"))
        last = next(iter(series.values()))
        facts = ", ".join(f"{key} {each.values[-1]:.4g}" for key, each in list(series.items())[:4])
        return f"Step {last.steps[-1]}: {facts}", _read(curves), _read(previews[-1]) if previews else None

    found = runs()
    with gr.Row():
        chosen = gr.Dropdown(found, value=found[0] if found else None, label="Run", elem_id="run")
        again = gr.Button("Look again", elem_id="look")
    text = gr.Markdown(elem_id="run-facts")
    curves = gr.Image(label="Curves", show_label=False, interactive=False, elem_id="curves", buttons=[])
    preview = gr.Image(label="The last preview", show_label=False, interactive=False, elem_id="preview", buttons=[])
    outputs = [text, curves, preview]
    private: Any = {"api_visibility": "private", "show_progress": "hidden"}
    again.click(lambda: gr.update(choices=runs()), None, chosen, **private).then(look, chosen, outputs, **private)
    chosen.change(look, chosen, outputs, **private)
    gr.Timer(10).tick(look, chosen, outputs, **private)


_TABS: Mapping[str, Callable[[Studio, gr.Dropdown], None]] = {
    "Generate": _generate,
    "Edit": _edit,
    "Interpolate": _interpolate,
    "Inpaint": _inpaint,
    "Restore": _restore,
    "Explore": _explore,
    "Model": _model,
}


# parts of tabs --------------------------------------------------------------------------------------------------------


def _condition(studio: Studio, model: gr.Dropdown, default: str) -> tuple[gr.Dropdown, gr.Textbox]:
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


def _dials(studio: Studio, model: gr.Dropdown) -> tuple[gr.Slider, gr.Number, gr.Radio, gr.Slider]:
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


def _options(
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


def _label(chosen: str | None, prompt: str | None) -> str | None:
    """Return the class that a choice stands for, or the prompt; None for none."""
    return (prompt or "").strip() or (None if chosen in (ANY, NONE) else chosen)


def _gallery(name: str, columns: int) -> gr.Gallery:
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


def _canvas(label: str, elem_id: str, ink: str) -> gr.ImageEditor:
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


def _on(button: gr.Button, do: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
    return button.click(do, inputs, outputs, api_visibility="private", show_progress="minimal")


def _captioned(output: PipelineOutput, text: str = "") -> list[tuple[Image.Image, str]]:
    """Return the images of an output, enlarged, with seed and class below them."""
    words = []
    for number, seed in enumerate(output.seeds):
        name, prompt = output.class_name(number), output.prompts[number] if output.prompts else ""
        words.append(
            text or ", ".join(part for part in (prompt[:_SHOWN_TEXT], name and f"class {name}", f"seed {seed}") if part)
        )
    return list(zip(_enlarged([output.tensor]), words, strict=True))


def _enlarged(images: Sequence[torch.Tensor]) -> list[Image.Image]:
    """Return batches (B, C, S, S) in [0, 1] as images that are large enough to look at."""
    batch = torch.cat(list(images))
    scale = max(1, SHOWN // batch.shape[-1])
    whole = PipelineOutput(batch, seeds=tuple(range(len(batch))), labels=None, settings={})
    return [image.resize((image.width * scale,) * 2, Image.Resampling.NEAREST) for image in whole.images]


def _flat(drawn: Any) -> Image.Image:
    """Return what is on a canvas, on white."""
    composite = None if drawn is None else drawn.get("composite")
    if composite is None or not composite.getbbox():
        raise gr.Error("drop an image or draw one first", print_exception=False)
    white = Image.new("RGBA", composite.size, "white")
    return Image.alpha_composite(white, composite.convert("RGBA")).convert("RGB")


def _painted(drawn: Any) -> tuple[Image.Image, Image.Image]:
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


def _there_and_back(square: torch.Tensor, side: int) -> torch.Tensor:
    """Return the images of a square (side * side, ...) in the order of a walk over it, row by row."""
    rows = square.unflatten(0, (side, side))
    return torch.cat([row.flip(0) if number % 2 else row for number, row in enumerate(rows)])


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def card_of(folder: Path, pipe: Pipeline, name: str) -> str:
    """Return what the page tells of a model: the card in its folder, and its defaults of sampling."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else f"# {name}"
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"```python\n.*?```\n", "", text, flags=re.DOTALL)
    rows = "\n".join(f"| {name} | {value} |" for name, value in pipe.settings().items())
    return f"{text}\n\n## Defaults of generation\n\n| | |\n|---|---|\n{rows}\n"
