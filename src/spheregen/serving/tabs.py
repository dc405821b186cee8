"""The tabs of the app: each is a function that lays it out and says what its buttons do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import torch
from PIL import Image

from spheregen.data import find_ffmpeg, save_animation
from spheregen.errors import SphereGenError
from spheregen.pipeline import Pipeline, PipelineOutput
from spheregen.pipeline.output import RestorationOutput
from spheregen.pipeline.tasks import NOISE, TASKS, task_operator
from spheregen.serving import widgets
from spheregen.training.log import LOG
from spheregen.training.plots import draw_curves, read_series
from spheregen.training.preview import FOLDER as PREVIEWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spheregen.serving.studio import Studio

MOST_IMAGES, MOST_FRAMES = 36, 32
PAD = 7
"""Images along a side of the pad."""


def _generate(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            label, prompt = widgets.condition(studio, model, widgets.ANY)
            count = gr.Slider(1, MOST_IMAGES, value=9, step=1, label="Images")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed of the first one", elem_id="seed")
            steps, guidance, prior, temperature = widgets.dials(studio, model)
            with gr.Row():
                make = gr.Button("Generate", variant="primary", elem_id="generate")
                others = gr.Button("Other seeds", elem_id="others")
        with gr.Column(scale=2, min_width=320):
            made = widgets.gallery("made", columns=3)
            facts = gr.Markdown("Choose an image for more like it.", elem_id="facts")
            with gr.Row():
                angle = gr.Slider(1, 90, value=25, step=1, label="How far, in degrees")
                more = gr.Button("More like this", elem_id="more")
    chosen = gr.State(0)
    shown = gr.State(None)

    def generate(name: str, of: str, text: str, count: int, seed: int, steps: int, *dials: Any) -> Any:
        label = widgets.label(of, text)
        options = widgets.options(studio.pipelines[name], label, steps, *dials)
        output = studio.run(
            name, lambda pipe: pipe.generate(int(count), labels=label, seed=int(seed), **options), int(count)
        )
        return widgets.captioned(output), output.images, 0

    def vary(
        name: str, images: Sequence[Image.Image] | None, number: int, angle: float, of: str, text: str, seed: int
    ) -> Any:
        if not images:
            raise gr.Error("generate images first, and choose one", print_exception=False)
        image, label = images[min(number, len(images) - 1)], widgets.label(of, text)
        output = studio.run(name, lambda pipe: pipe.vary(image, 9, angle=angle, labels=label, seed=int(seed)), 9)
        return widgets.captioned(output, f"{angle:g} degrees"), output.images, 0

    def choose(event: gr.SelectData) -> tuple[int, str]:
        caption = (event.value or {}).get("caption", "") if isinstance(event.value, dict) else ""
        return int(event.index), f"Chosen: image {int(event.index) + 1}. {caption}"

    inputs = [model, label, prompt, count, seed, steps, guidance, prior, temperature]
    outputs = [made, shown, chosen]
    widgets.on_click(make, generate, inputs, outputs)
    others.click(lambda seed, count: int(seed) + int(count), [seed, count], seed, api_visibility="private").then(
        generate, inputs, outputs, api_visibility="private"
    )
    widgets.on_click(more, vary, [model, shown, chosen, angle, label, prompt, seed], outputs)
    made.select(choose, None, [chosen, facts], api_visibility="private")


def _edit(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            drawn = widgets.canvas("An image: drop it, or draw", elem_id="edit-image", ink="#000000")
            label, prompt = widgets.condition(studio, model, widgets.NONE)
            strength = gr.Slider(0, 1, value=0.25, step=0.01, label="Strength")
            steps = gr.Slider(1, widgets.MOST_STEPS, value=4, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            angle = gr.Slider(0, 90, value=30, step=1, label="Angle of variations, in degrees")
            with gr.Row():
                make = gr.Button("Edit", variant="primary", elem_id="edit")
                more = gr.Button("Vary", elem_id="vary")
        with gr.Column(scale=2, min_width=320):
            made = widgets.gallery("edited", columns=3)

    def edit(name: str, drawn: Any, of: str, text: str, strength: float, steps: int, seed: int) -> Any:
        image, label = widgets.flat(drawn), widgets.label(of, text)

        def work(pipe: Pipeline) -> tuple[torch.Tensor, PipelineOutput]:
            options: Any = (
                {} if pipe.model.fitted is not None and label else {"steps": int(steps), "strength": strength}
            )
            return pipe.reconstruct(image, label), pipe.edit(image, label, seed=int(seed), **options)

        seen, output = studio.run(name, work)
        titles = ["as the model sees it", *(f"step {step + 1}" for step in range(len(output.trajectory)))]
        return list(zip(widgets.enlarged([seen, *output.trajectory]), titles, strict=True))

    def vary(name: str, drawn: Any, of: str, text: str, angle: float, seed: int) -> Any:
        image, label = widgets.flat(drawn), widgets.label(of, text)
        output = studio.run(name, lambda pipe: pipe.vary(image, 9, angle=angle, labels=label, seed=int(seed)), 9)
        return widgets.captioned(output, f"{angle:g} degrees")

    widgets.on_click(make, edit, [model, drawn, label, prompt, strength, steps, seed], made)
    widgets.on_click(more, vary, [model, drawn, label, prompt, angle, seed], made)


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
            label, prompt = widgets.condition(studio, model, widgets.ANY)
            make = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
        with gr.Column(scale=2, min_width=320):
            sheet = widgets.picture("way", elem_classes="pixels", buttons=["download"])
            moving = widgets.picture("moving", elem_classes="pixels", type="filepath")
            saved = gr.Files(label="GIF and MP4" if find_ffmpeg() else "GIF")

    def interpolate(name: str, ends: int, frames: int, of: str, text: str, *given: Any) -> Any:
        here = [seed if photo is None else photo for seed, photo in zip(given[:4], given[4:], strict=True)][:ends]
        frames = int(frames) if ends == 2 else min(int(frames), 8)
        points = [end if isinstance(end, Image.Image) else int(end) for end in here]
        count = frames ** (ends // 2)
        output = studio.run(name, lambda pipe: pipe.interpolate(points, frames, labels=widgets.label(of, text)), count)
        columns = frames if ends == 4 else min(frames, 6)
        files = []
        scale = max(1, widgets.SHOWN // output.tensor.shape[-1])
        walk = output.tensor if ends == 2 else _there_and_back(output.tensor, frames)
        folder = studio.place_for_files()
        for suffix in (".gif", ".mp4") if find_ffmpeg() else (".gif",):
            files.append(folder / f"interpolation{suffix}")
            save_animation(walk, files[-1], fps=8, bounce=True, scale=scale)
        return output.grid(columns), str(files[0]), [str(file) for file in files]

    widgets.on_click(make, interpolate, [model, ends, frames, label, prompt, *seeds, *photos], [sheet, moving, saved])


def _inpaint(studio: Studio, model: gr.Dropdown) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            drawn = widgets.canvas(
                "An image; paint over what is to be made anew", elem_id="inpaint-image", ink="#d55e00"
            )
            example = gr.Button("Take an image of the model", elem_id="example")
            label, prompt = widgets.condition(studio, model, widgets.NONE)
            steps = gr.Slider(1, widgets.MOST_STEPS, value=8, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            make = gr.Button("Inpaint", variant="primary", elem_id="inpaint")
        with gr.Column(scale=2, min_width=320):
            made = widgets.gallery("inpainted", columns=3)

    def take(name: str, seed: int) -> Any:
        output = studio.run(name, lambda pipe: pipe.generate(1, seed=int(seed)))
        return widgets.enlarged([output.tensor])[0]

    def inpaint(name: str, drawn: Any, of: str, text: str, steps: int, seed: int) -> Any:
        background, mask = widgets.painted(drawn)

        def work(pipe: Pipeline) -> list[torch.Tensor]:
            options: Any = {"labels": widgets.label(of, text), "steps": int(steps)}
            return [pipe.inpaint(background, mask, seed=int(seed) + n, **options).tensor for n in range(3)]

        made = studio.run(name, work, 3)
        return list(zip(widgets.enlarged(made), (f"seed {int(seed) + n}" for n in range(3)), strict=True))

    widgets.on_click(example, take, [model, seed], drawn)
    widgets.on_click(make, inpaint, [model, drawn, label, prompt, steps, seed], made)


def _restore(studio: Studio, model: gr.Dropdown) -> None:
    gr.Markdown("What happened to the image is known; the model finds the likely image behind it.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            given = gr.Image(
                type="pil",
                image_mode=None,
                label="A degraded image",
                height=220,
                elem_id="degraded",
                elem_classes="pixels",
            )
            tasks = [task for task in TASKS if task != "inpaint"]
            task = gr.Dropdown(tasks, value="denoise", label="Task", elem_id="task")
            kernel = gr.Textbox("gaussian:1", label="Kernel of deblur: gaussian:SIGMA or motion:LENGTH:DEGREES")
            factor = gr.Slider(2, 8, value=2, step=1, label="Factor of superres")
            label, prompt = widgets.condition(studio, model, widgets.NONE)
            steps = gr.Slider(1, 50, value=20, step=1, label="Steps")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed")
            make = gr.Button("Restore", variant="primary", elem_id="restore")
        with gr.Column(scale=2, min_width=320):
            made = widgets.gallery("restored", columns=3)

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
            options: Any = {"labels": widgets.label(of, text), "steps": int(steps), "seed": int(seed)}
            return pipe.restore([given], operator, noise=noise, **options)

        output = studio.run(name, work)
        shown = [output.trajectory[number - 1] for number in sorted({1, (len(output.trajectory) + 1) // 2})]
        titles = ["the start", "step 1", "half way", "restored"]
        return list(zip(widgets.enlarged([output.start, *shown, output.tensor]), titles, strict=False))

    widgets.on_click(make, restore, [model, given, task, kernel, factor, label, prompt, steps, seed], made)


def _explore(studio: Studio, model: gr.Dropdown) -> None:
    gr.Markdown("Four seeds are the corners of a pad on the sphere. Touch it, or move by the sliders.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            label, prompt = widgets.condition(studio, model, widgets.ANY)
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
            pad = widgets.picture("pad", elem_classes="pixels", type="pil")
        with gr.Column(scale=1, min_width=300):
            here = widgets.picture("here", elem_classes="pixels", buttons=["download"])

    def pad_of(name: str, of: str, text: str, *seeds: Any) -> Any:
        ends = [int(seed) for seed in seeds]
        output = studio.run(name, lambda pipe: pipe.interpolate(ends, PAD, labels=widgets.label(of, text)), PAD**2)
        return output.grid(PAD)

    def point(name: str, of: str, text: str, across: float, down: float, *seeds: Any) -> Any:
        label = widgets.label(of, text)

        def work(pipe: Pipeline) -> torch.Tensor:
            ends = pipe.generate(seeds=[int(seed) for seed in seeds], labels=label)
            points = pipe.encode(list(ends.tensor), label)
            way, x, y = pipe.model.prior.slerp, torch.tensor([across]), torch.tensor([down])
            upper, lower = way(points[:1], points[1:2], x), way(points[2:3], points[3:], x)
            return pipe.decode(way(upper, lower, y), label)

        return widgets.enlarged([studio.run(name, work, 4)])[0]

    def touched(image: Image.Image, event: gr.SelectData) -> tuple[float, float]:
        x, y = event.index
        return round(min(max(x / image.width, 0), 1), 2), round(min(max(y / image.height, 0), 1), 2)

    inputs = [model, label, prompt, *corners]
    place = [model, label, prompt, across, down, *corners]
    private: Any = {"api_visibility": "private"}
    widgets.on_click(draw, pad_of, inputs, pad).then(point, place, here, **private)
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


def training(studio: Studio) -> None:
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
    curves, preview = widgets.picture("curves"), widgets.picture("preview")
    outputs = [text, curves, preview]
    private: Any = {"api_visibility": "private", "show_progress": "hidden"}
    again.click(lambda: gr.update(choices=runs()), None, chosen, **private).then(look, chosen, outputs, **private)
    chosen.change(look, chosen, outputs, **private)
    gr.Timer(10).tick(look, chosen, outputs, **private)


def _there_and_back(square: torch.Tensor, side: int) -> torch.Tensor:
    """Return the images of a square (side * side, ...) in the order of a walk over it, row by row."""
    rows = square.unflatten(0, (side, side))
    return torch.cat([row.flip(0) if number % 2 else row for number, row in enumerate(rows)])


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


TABS: Mapping[str, Callable[[Studio, gr.Dropdown], None]] = {
    "Generate": _generate,
    "Edit": _edit,
    "Interpolate": _interpolate,
    "Inpaint": _inpaint,
    "Restore": _restore,
    "Explore": _explore,
    "Model": _model,
}
