"""Two processes train a tokenizer, critic and all, as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spheregen.training.recipe import load_recipe
from spheregen.training.trainer import train
from tests.training.test_distributed import Processes
from tests.training.test_representation import ADVERSARIAL, NAME
from tests.training.test_trainer import log, weights


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(tmp_path: Path, parallel: str) -> None:
    settings = (
        *ADVERSARIAL,
        "train.steps=20",
        "train.log_every=1",
        "train.checkpoint_every=5",
        "train.preview_every=20",
    )
    alone = tmp_path / "alone"
    train(load_recipe(NAME, settings), alone, device="cpu")
    folder = tmp_path / "run"
    together = Processes(2, folder, *settings, f"train.parallel={parallel}", recipe=NAME)
    for code, messages in together.finish():
        assert code == 0, messages
        assert "Warning" not in messages
    ours, theirs = log(folder), log(alone)
    for name in ("loss", "critic", "adversarial"):
        assert [entry[name] for entry in ours] == pytest.approx([entry[name] for entry in theirs], abs=2e-4)
    assert ours[-1]["image_deviation"] == pytest.approx(theirs[-1]["image_deviation"], rel=1e-3)
    kept, expected = weights(folder), weights(alone)
    assert kept.keys() == expected.keys()
    assert torch.equal(kept["codec.normaliser.mean"], expected["codec.normaliser.mean"])
    torch.testing.assert_close(kept["codec.projection.weight"], expected["codec.projection.weight"], rtol=0, atol=1e-3)
    assert (folder / "previews" / "step-000000020.png").is_file()
