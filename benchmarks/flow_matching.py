"""A plain flow-matching transformer on a latent cache: the baseline that a latent denoiser is measured against.

    python benchmarks/flow_matching.py train CACHE --recipe RECIPE --out DIR --steps 8000
    python benchmarks/flow_matching.py sample DIR --steps 4 --count 10000 --seed 0 --out samples.zip
    spheregen evaluate --images samples.zip --data IMAGES

The network is the denoiser's own (same blocks, same sizes) with the time added to the class embedding; it learns the
velocity z - e on the straight path x_t = (1 - t) e + t z, t logit-normal, and is sampled by Euler steps with
classifier-free guidance. Latents, optimiser, average and label dropout are those of the denoiser's recipe, whose
settings `--recipe` and `--set` take. A batch costs half of what the denoiser's costs: one evaluation, not two.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from spheregen.models.trunk import NetworkCondition
from torch import Tensor, nn

from spheregen.data import open_writer, to_pil
from spheregen.data.latent_cache import LatentBatches, LatentCache
from spheregen.family.sphere_latent_encoder.network import LatentDenoiser, LatentDenoiserConfig
from spheregen.family.terms import to_unit
from spheregen.folders.model_folder import TOKENIZER
from spheregen.folders.tokenizers import open_tokenizer, save_tokenizer
from spheregen.training.ema import EMA
from spheregen.training.optimizer import Optimizer, learning_rate, tags_by_name
from spheregen.training.recipe import LatentDenoiserRecipe, build_recipe, load_recipe

FREQUENCIES = 128
BATCH = 250


class FlowTransformer(nn.Module):
    """The velocity (B, N, d) at points (B, N, d) of the path, times (B,) in [0, 1], under labels (B,)."""

    def __init__(self, config: LatentDenoiserConfig) -> None:
        super().__init__()
        self.network = LatentDenoiser(config)
        width = config.transformers[0].width
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        for parameter in self.time.parameters():
            parameter.sphere_tags = frozenset({"decay" if parameter.ndim == 2 else "no_decay"})  # type: ignore[attr-defined]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        speeds = torch.exp(-math.log(10_000) * torch.arange(FREQUENCIES, device=t.device) / FREQUENCIES)
        angles = 1000 * t[:, None] * speeds
        trunk, output = self.network.trunk, self.network.output
        assert trunk.labels is not None and output is not None
        embedding = trunk.labels(labels, len(x)) + self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
        blocks = tuple(block.modulation(embedding) for block in trunk.blocks)
        return self.network(x, NetworkCondition(embedding, blocks, output.modulation(embedding)))


def train(options: argparse.Namespace) -> None:
    cache = LatentCache(Path(options.cache))
    recipe = load_recipe(options.recipe, options.set, data=options.cache)
    assert isinstance(recipe, LatentDenoiserRecipe)
    steps = options.steps or recipe.total_steps(cache.count)
    torch.manual_seed(recipe.train.seed)
    model = FlowTransformer(recipe.model)
    average = EMA(model, recipe.train.ema)
    optimizer = Optimizer(model, tags_by_name(model), recipe.parameter_groups)
    schedule = {"batch_size": recipe.train.batch_size, "warmup": recipe.warmup_steps(cache.count), "total": steps}
    batches = LatentBatches(
        cache, batch_size=recipe.train.batch_size, steps=steps, seed=recipe.train.seed, flips=recipe.data.flips
    )
    draws = torch.Generator().manual_seed(recipe.train.seed)
    begun, total, log = time.monotonic(), 0.0, []
    for batch in batches:
        z, count = batch.inputs, len(batch.inputs)
        assert batch.labels is not None
        dropped = torch.rand(count, generator=draws) < recipe.loss.label_dropout
        labels = batch.labels.masked_fill(dropped, recipe.model.num_classes)
        e = torch.randn(z.shape, generator=draws)
        t = torch.sigmoid(torch.randn(count, generator=draws))
        x = torch.lerp(e, z, t.view(-1, 1, 1))
        loss = (model(x, t, labels) - (z - e)).square().mean()
        loss.backward()
        optimizer.step({"": learning_rate(recipe.optimizer, batch.step, **schedule)})
        average.update(model)
        total += loss.item()
        done = batch.step + 1
        if done % 100 == 0:
            log.append({"step": done, "seconds": time.monotonic() - begun, "loss": total / 100})
            print(f"step {done} of {steps}, loss {total / 100:.4f}, {log[-1]['seconds']:.0f} s", flush=True)
            total = 0.0
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(average.model.state_dict(), out / "flow.safetensors")
    save_tokenizer(open_tokenizer(cache.path / TOKENIZER).tokenizer, out / TOKENIZER)
    about = {"recipe": recipe.model_dump(mode="json"), "class_names": list(cache.class_names), "log": log}
    (out / "flow.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


@torch.no_grad()
def sample(options: argparse.Namespace) -> None:
    """Image i has seed SEED + i, whose first draw is its noise, and class i modulo their number, as in `sample`."""
    folder = Path(options.model)
    about = json.loads((folder / "flow.json").read_text(encoding="utf-8"))
    config = build_recipe(about["recipe"]).model
    model = FlowTransformer(config).eval()
    model.load_state_dict(load_file(folder / "flow.safetensors"))
    tokenizer = open_tokenizer(folder / TOKENIZER).tokenizer
    with open_writer(Path(options.out), class_names=about["class_names"]) as writer:
        for start in range(0, options.count, BATCH):
            seeds = range(options.seed + start, options.seed + min(start + BATCH, options.count))
            own = (torch.Generator().manual_seed(seed) for seed in seeds)
            x = torch.stack([torch.randn((config.tokens, config.channels), generator=each) for each in own])
            labels = torch.tensor([seed % config.num_classes for seed in seeds])
            for step in range(options.steps):
                t = torch.full((len(x),), step / options.steps)
                v = model(x, t, labels)
                if options.guidance != 1:
                    free = model(x, t, torch.full_like(labels, config.num_classes))
                    v = free + options.guidance * (v - free)
                x = x + v / options.steps
            for seed, label, image in zip(seeds, labels.tolist(), to_pil(to_unit(tokenizer.decode(x))), strict=True):
                writer.add(f"{seed:06d}", image, {}, label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("cache")
    training.add_argument("--out", required=True)
    training.add_argument("--recipe", required=True, help="a recipe of kind latent-denoiser")
    training.add_argument("--set", action="append", default=[])
    training.add_argument("--steps", type=int)
    training.set_defaults(run=train)
    sampling = commands.add_parser("sample")
    sampling.add_argument("model")
    sampling.add_argument("--out", required=True)
    sampling.add_argument("--steps", type=int, default=4)
    sampling.add_argument("--count", type=int, default=10_000)
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument("--guidance", type=float, default=1.0)
    sampling.set_defaults(run=sample)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
