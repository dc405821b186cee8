"""Train FeatureNet, the network of the builtin perceptual loss, on CIFAR-10 and write the file that the package ships.

    python scripts/train_feature_net.py --data ../shared/data/cifar10

DATA holds the train and test split. The recipe is the
usual one for few epochs: Nesterov SGD with one triangle of the learning rate, label smoothing, random crops, flips,
a small cut-out and, on half of the images, faint noise. After training, batch norm is folded into the convolutions,
the weights are stored in float16, and the accuracy that is printed and stored is that of the written file, read back
as the package reads it.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from spheregen.data import ImageOptions, load_all, open_source
from spheregen.files import atomic_path
from spheregen.networks.backbones.feature_net import ASSET, ConvUnit, FeatureNet, load_feature_net

PADDING = 4  # random crops shift by up to this many pixels
HOLE = 8  # side of the cut-out


def augment(padded: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Crop, flip, cut and add noise to images uint8 (B, 3, 40, 40), drawn per sample; float (B, 3, 32, 32)."""
    count, _, side, _ = padded.shape
    size = side - 2 * PADDING
    steps = torch.arange(size)
    shifts = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    rows, columns = steps + shifts[0], steps + shifts[1]
    columns = torch.where(torch.rand((count, 1), generator=generator) < 0.5, columns.flip(1), columns)
    sample = torch.arange(count)
    # Index to (B, H, W, 3), which is channels_last without a copy once permuted.
    crops = padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None, :]]
    images = crops.permute(0, 3, 1, 2).float().div_(255)
    corners = torch.randint(-HOLE // 2, size - HOLE // 2, (2, count, 1), generator=generator)
    inside = (steps >= corners) & (steps < corners + HOLE)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    images.masked_fill_(hole, 0.47)  # the mean grey
    # A metric should forgive faint noise as the eye does, which a network that never saw any does not. Half stay clean.
    levels = noise * (2 * torch.rand((count, 1, 1, 1), generator=generator) - 1).clamp_(min=0)
    draws = torch.randn(images.shape, generator=generator).to(memory_format=torch.channels_last)
    return images.addcmul_(draws, levels)


@torch.inference_mode()
def accuracy(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of correct classes for images uint8 (N, 3, 32, 32)."""
    hits = [
        (net(batch.float().div(255)).argmax(1) == target).sum().item()
        for batch, target in zip(images.split(500), labels.split(500), strict=True)
    ]
    return float(sum(hits)) / len(labels)


def units(net: FeatureNet) -> list[ConvUnit]:
    return [module for module in net.modules() if isinstance(module, ConvUnit)]


def with_batch_norm(net: FeatureNet) -> FeatureNet:
    """Put a batch norm behind each convolution, to train from scratch."""
    for unit in units(net):
        width = unit.conv.out_channels
        plain = nn.Conv2d(unit.conv.in_channels, width, 3, padding=1, bias=False)
        unit.conv = nn.Sequential(plain, nn.BatchNorm2d(width))  # type: ignore[assignment]
    return net


def folded(net: FeatureNet) -> FeatureNet:
    """Return a copy whose plain convolutions equal those with batch norm in evaluation."""
    plain = copy.deepcopy(net).eval()
    for unit in units(plain):
        unit.conv = fuse_conv_bn_eval(*unit.conv)  # type: ignore[misc]
    return plain


def train(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> FeatureNet:
    """Return the network with batch norm after `options.epochs` passes over images uint8 (N, 3, 32, 32)."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    net = with_batch_norm(FeatureNet())
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=options.lr,
        momentum=0.9,
        nesterov=True,
    )
    per_epoch = len(images) // options.batch
    total = options.epochs * per_epoch
    peak = 0.2 * total
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / peak, (total - step) / (total - peak))
    )
    padded = functional.pad(images.float(), (PADDING,) * 4, mode="reflect").to(torch.uint8)
    start = time.monotonic()
    for epoch in range(options.epochs):
        net.train()
        order = torch.randperm(len(images), generator=generator)[: per_epoch * options.batch]
        for step, index in enumerate(order.split(options.batch), start=1):
            loss = functional.cross_entropy(
                net(augment(padded[index], options.noise, generator)), labels[index], label_smoothing=0.1
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 0 or step == per_epoch:
                seconds = time.monotonic() - start
                print(f"epoch {epoch + 1} step {step}/{per_epoch} loss {loss.item():.4f} {seconds:.0f} s", flush=True)
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10's parquet files")
    parser.add_argument("--out", type=Path, default=ASSET, help="safetensors file to write")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.25, help="highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--noise", type=float, default=0.1, help="highest deviation of the noise on training images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    options_32 = ImageOptions(image_size=32)
    train_set, test_set = (load_all(open_source(options.data, split=split), options_32) for split in ("train", "test"))
    assert train_set.labels is not None and test_set.labels is not None
    test = (test_set.images, test_set.labels)
    net = train(train_set.images, train_set.labels, options).eval()
    before = accuracy(net, *test)
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in folded(net).state_dict().items()}
    metadata = {
        "network": "FeatureNet",
        "data": "CIFAR-10 train split",
        "command": shlex.join(["python", "scripts/train_feature_net.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "test_accuracy": "",
    }
    # Written twice: the accuracy in the metadata is that of the file as it is read back.
    for _ in range(2):
        with atomic_path(options.out) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        metadata["test_accuracy"] = f"{accuracy(load_feature_net(options.out), *test):.4f}"
    size = options.out.stat().st_size
    print(f"test accuracy {before:.4f} with batch norm, {metadata['test_accuracy']} as shipped")
    print(f"{options.out}: {size} bytes")


if __name__ == "__main__":
    main()
