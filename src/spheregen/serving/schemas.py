"""The requests and answers of the service. A request says what `Pipeline` is to do, in its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spheregen.errors import ConfigError
from spheregen.pipeline import Pipeline
from spheregen.pipeline.options import DEFAULTS, FLOW_DEFAULTS, NEGATIVE
from spheregen.pipeline.tasks import NOISE, task_operator
from spheregen.serving.files import Format
from spheregen.serving.settings import Limits

Base64 = Annotated[str, Field(description="A file as base64 text, or as a data URL.")]
_MOST = 10_000  # entries of a list, before anybody looks at them
_MOST_FIELDS = 64
Label = int | str
Labels = Annotated[
    Label | list[Label] | None,
    Field(description="Classes by name or number: one for all images, or one for each. Left out: the null class."),
]
_OPTIONS = {*DEFAULTS, *FLOW_DEFAULTS, "labels", "prompt", NEGATIVE, "seed", "angle"}
"""Fields that pipelines take by the same names."""


class Sent(NamedTuple):
    """The files of a request, as base64 text."""

    images: Sequence[str] = ()
    mask: str | None = None
    latents: str | None = None
    reduced: int = 1
    """How many times smaller than the model's the images are."""


class Body(BaseModel):
    """What all requests have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    model: str | None = Field(None, description="By default the first one of `/v1/models`.")
    deadline: float | None = Field(None, gt=0, description="Seconds until the answer is of no more use.")
    labels: Labels = None

    @model_validator(mode="before")
    @classmethod
    def _of_bounded_size(cls, given: Any) -> Any:
        if isinstance(given, dict):
            if len(given) > _MOST_FIELDS:
                raise ValueError(f"{len(given)} fields, and {_MOST_FIELDS} are the most")
            for name, value in given.items():
                if isinstance(value, list | dict) and len(value) > _MOST:
                    raise ValueError(f"{len(value)} entries of {name[:50]!r}, and {_MOST} are the most")
        return given

    def sent(self) -> Sent:
        """Return the files in it."""
        return Sent()

    def count_of(self) -> int:
        """Return how many images it asks for."""
        return max(1, len(self.sent().images))

    def check(self, limits: Limits) -> None:
        """Raise a ConfigError for more than the service gives."""
        count = max(self.count_of(), len(self.sent().images))
        if count > limits.images:
            raise ConfigError(f"{count} images in a request, and {limits.images} are the most; ask for fewer")
        for name in ("steps", "refinement_steps"):
            if (getattr(self, name, None) or 0) > limits.steps:
                raise ConfigError(f"{name} is at most {limits.steps} here, not {getattr(self, name)}")

    def options(self) -> dict[str, Any]:
        """Return the options of a pipeline's call that it gives."""
        return self.model_dump(include=_OPTIONS, exclude_none=True)


class Sampler(BaseModel):
    """Options of the few-step loop; what is left out is the model's default."""

    steps: int | None = Field(None, description="Decodes, or of an edit pairs of encode and decode.")
    schedule: str | list[float] | None = Field(None, description="`fixed`, `decay`, `angle`, or fractions.")
    guidance: float | None = Field(None, description="A scale, 1 for none; degrees of models guided by rotation.")
    guidance_at: str | None = Field(None, description="`pixel`, `latent` or `both`.")
    share_noise: bool | None = Field(None, description="One noise for all steps.")
    strength: float | None = Field(None, description="The noise of a step as a fraction of the schedule's.")
    prior: str | None = Field(None, description="`sphere`, or `fitted` for points where the codes are.")
    temperature: float | None = Field(None, description="Of a fitted prior; below 1 nearer to a class's mean.")
    prior_angle: float | None = Field(None, description="Degrees from a fitted prior towards uniform points.")
    start_angle: float | None = Field(None, description="Degrees that the model is told of the start.")
    loop_angle: float | None = Field(None, description="Degrees that later steps start from.")


class Flow(BaseModel):
    """Options of the flow of models that refine."""

    refinement_steps: int | None = Field(None, description="0 leaves images rough.")
    solver: str | None = Field(None, description="`euler`, `heun` or `midpoint`.")
    refinement_guidance: float | None = Field(None, description="By default that of the loop.")


class Answered(BaseModel):
    """What requests for images have in common: texts, the noise, and the form of the answer."""

    prompt: str | list[str] | None = Field(
        None, description="What to make, of models that follow texts: one for all images, or one for each."
    )
    negative_prompt: str | None = Field(None, description="What guidance pulls away from; by default no text at all.")
    seed: int = Field(0, description="The noise of image i has seed `seed + i`.")
    format: Format = Field("png", description="`npy` holds float32 (C, S, S) in [0, 1].")
    quality: int = Field(90, ge=1, le=100, description="Of JPEG and WebP.")
    output: Literal["json", "file"] = Field(
        "json", description="`file`: the bytes of an image, of several as one sheet (npy: one array)."
    )
    stream: bool = Field(False, description="Server-sent events: `step` after each step, then `result` or `error`.")


class Generate(Body, Sampler, Flow, Answered):
    """Images of seeds, and of classes or prompts."""

    count: int | None = Field(None, ge=1, description="By default as many as labels, prompts or seeds, else 1.")
    seeds: list[int] | None = Field(None, description="The seeds themselves, instead of `seed`.")

    def count_of(self) -> int:
        if self.count is None and self.seeds is not None:
            return len(self.seeds)
        of = self.labels if self.prompt is None else self.prompt
        if self.count is None and isinstance(of, list):
            return len(of)
        return self.count or 1

    def do(self, pipe: Pipeline, files: Any, **how: Any) -> Any:
        return pipe.generate(self.count, seeds=self.seeds, **self.options(), **how)


class Images(Body):
    """A request that sends images."""

    images: list[Base64] = Field(min_length=1)

    def sent(self) -> Sent:
        return Sent(self.images)


class Edit(Images, Sampler, Flow, Answered):
    """Pull images towards a class or a prompt."""

    def do(self, pipe: Pipeline, files: Any, **how: Any) -> Any:
        return pipe.edit(files.images, **self.options(), **how)


class Restored(Images, Flow, Answered):
    """What requests that restore have in common."""

    steps: int | None = Field(
        None, description="Steps of the model and of agreement with what is known; the model's own, or 20."
    )
    angle: float | None = Field(
        None, description="Degrees of the noise of the model's first step, 0 to 90; the model's own, or 30."
    )
    guidance: float | None = Field(None, description="A scale, 1 for none; degrees of models guided by rotation.")


class Restore(Restored):
    """Undo a known degradation: inpaint, deblur, superres, denoise, decolour, dejpeg or dequantise."""

    task: str = Field(max_length=50)
    mask: Base64 | None = Field(None, description="Of inpaint: white where the image is missing.")
    kernel: str | None = Field(
        None,
        max_length=100,
        description="`gaussian:SIGMA` or `motion:LENGTH:DEGREES`; of superres `bicubic`, `none` too.",
    )
    factor: int | None = Field(None, ge=1, description="Of superres: pixels that become of one, along each side; 2.")
    jpeg_quality: int | None = Field(None, description="Of dejpeg, 1 to 100; 10.")
    levels: int | None = Field(None, description="Of dequantise; 8.")
    noise: float | Literal["auto"] | None = Field(
        None, description="Deviation, of pixels in 0 to 1; by default `auto` in denoise, 0.01 in deblur, else 0."
    )

    def sent(self) -> Sent:
        return Sent(self.images, mask=self.mask, reduced=(self.factor or 2) if self.task == "superres" else 1)

    def do(self, pipe: Pipeline, files: Any, **how: Any) -> Any:
        operator = task_operator(
            pipe,
            self.task,
            files.images,
            mask=files.mask,
            kernel=self.kernel,
            factor=self.factor,
            quality=self.jpeg_quality,
            levels=self.levels,
        )
        noise = NOISE.get(self.task, 0.0) if self.noise is None else self.noise
        return pipe.restore(files.images, operator, noise=noise, **self.options(), **how)


class Inpaint(Restored):
    """Fill in a region; known pixels stay as they are."""

    mask: Base64 = Field(description="White where the image is missing; of the size of the images, or of the model.")

    def sent(self) -> Sent:
        return Sent(self.images, mask=self.mask)

    def do(self, pipe: Pipeline, files: Any, **how: Any) -> Any:
        return pipe.inpaint(files.images, files.mask, **self.options(), **how)


class Vary(Body, Sampler, Flow, Answered):
    """Variations of an image, at an angle on the sphere."""

    image: Base64
    count: int = Field(8, ge=1)
    angle: float = Field(30.0, description="Degrees, 0 to 180.")
    labels: Label | None = None

    def sent(self) -> Sent:
        return Sent([self.image])

    def count_of(self) -> int:
        return self.count

    def do(self, pipe: Pipeline, files: Any, **how: Any) -> Any:
        return pipe.vary(files.images[0], self.count, **self.options(), **how)


class Interpolate(Body, Sampler, Flow, Answered):
    """Images between two ends, or over the square between four."""

    ends: list[int | Base64] = Field(
        min_length=2, max_length=4, description="Two or four: images as base64, or seeds as numbers."
    )
    frames: int = Field(8, ge=2, description="Along each side, ends included: F images, or F*F.")
    path: str = Field("slerp", description="`slerp` or `lerp`.")
    class_path: str | None = Field(
        None, description="`lerp`, `slerp` or `hard`, between two ends with classes; slerp between prompts, else lerp."
    )

    def sent(self) -> Sent:
        return Sent([end for end in self.ends if isinstance(end, str)])

    def count_of(self) -> int:
        return self.frames if len(self.ends) == 2 else self.frames**2

    def do(self, pipe: Pipeline, files: Any, **how: Any) -> Any:
        images = iter(files.images)
        ends = [next(images) if isinstance(end, str) else end for end in self.ends]
        options = {**self.options(), "path": self.path, "class_path": self.class_path}
        return pipe.interpolate(ends, self.frames, **options, **how)


class Reconstruct(Images, Flow, Answered):
    """Images there and back."""

    stream: Literal[False] = Field(False, description="There are no steps.")

    def do(self, pipe: Pipeline, files: Any) -> Any:
        return pipe.reconstruct(files.images, **self.options())


class Encode(Images):
    """Images to points on the sphere."""

    def do(self, pipe: Pipeline, files: Any) -> Any:
        return pipe.encode(files.images, self.labels).cpu()


class Decode(Body, Flow, Answered):
    """Points on the sphere to images."""

    latents: Base64 = Field(description="An npy file of float32 (B, N, d), as `/v1/encode` gives it.")
    stream: Literal[False] = Field(False, description="There are no steps.")

    def sent(self) -> Sent:
        return Sent(latents=self.latents)

    def do(self, pipe: Pipeline, files: Any) -> Any:
        return pipe.decode(files.latents, **self.options())


class Generation(BaseModel):
    """A request in the shape of OpenAI's images API. Names that have no meaning here are accepted and not read."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())

    prompt: str = Field(
        max_length=4000,
        description="What to make, of models that follow texts. Else a class: its name or number, or words among which "
        "one name stands; empty: any.",
    )
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str = Field("auto", description="`auto`, or the model's own, such as `32x32`.")
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: int = Field(90, ge=1, le=100, description="The quality of JPEG and WebP.")
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3, description="Any number above 0: the images after every step.")
    seed: int | None = Field(None, description="Ours: by default a random one.")


class MadeImage(BaseModel):
    """An image of an answer."""

    data: Base64
    seed: int | None = None
    label: int | None = None
    class_name: str | None = None
    prompt: str | None = None


class ImagesAnswer(BaseModel):
    """Images, and all that makes them again."""

    model: str
    format: Format
    images: list[MadeImage]
    settings: dict[str, Any] = Field(description="As used, defaults included.")


class LatentsAnswer(BaseModel):
    """Points on the sphere."""

    model: str
    shape: tuple[int, ...]
    latents: Base64 = Field(description="An npy file of float32 (B, N, d).")


class GeneratedImage(BaseModel):
    """An image in the shape of OpenAI's images API."""

    b64_json: str


class Generations(BaseModel):
    """Images in the shape of OpenAI's images API."""

    created: int
    data: list[GeneratedImage]
    output_format: str
    size: str


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "spheregen"
    image_size: int
    channels: int
    latent_shape: tuple[int, ...]
    classes: list[str]
    follows_texts: bool
    fitted_prior: bool
    refines: bool
    sampling: dict[str, Any] = Field(description="The defaults of generation.")


class Models(BaseModel):
    """The models that are served; the first one is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Problem(BaseModel):
    """The cause of a refusal, and the cure."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every refusal."""

    error: Problem
