"""What each of several processes does in `test_processes`: python -m tests.data.latent_cache.worker FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from spheregen.data import open_source
from spheregen.distributed import joined_world
from tests.data.latent_cache.toys import Convolution, Stopping, encode


def main(folder: Path) -> None:
    """Write a cache, restore it after a loss, and begin another one in which the second process fails."""
    torch.set_num_threads(1)
    source = open_source(folder / "pictures")
    with joined_world("cpu") as world:
        calls = []
        for lost in ((), (0, 2)):
            world.wait_for_all()
            if world.is_first:
                for shard in lost:
                    (folder / "cache" / f"shard-{shard:05d}.safetensors").unlink()
            tokenizer = Convolution()
            index = encode(tokenizer, source, folder / "cache", on_error="skip", world=world)
            calls.append(world.gather_objects(tokenizer.calls))
        print(json.dumps({"calls": calls, "fingerprint": index.fingerprint}), flush=True)
        failing = Convolution() if world.is_first else Stopping(9)
        encode(failing, source, folder / "stopped", on_error="skip", shard_images=4, world=world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
