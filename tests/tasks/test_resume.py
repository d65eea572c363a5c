"""A run that was stopped anywhere and resumed ends with the weights of one that was not, bit by bit."""

import random
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from medseq.data.restore import PhantomPairs
from medseq.tasks.restore import RestoreDataModule, RestoreTask
from medseq.tasks.resume import ExactResume

# A resumed run writes into its own folder, as it should.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Stop(Exception):
    """Ends a run from outside, as a kill does."""


class StopAt(pl.Callback):
    """Raises after so many optimizer steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Stop


class Noisy(nn.Module):
    """A network that draws from the generators of torch, numpy and Python in every training step."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, image, condition=None):
        out = self.drop(self.conv(image))
        if self.training:
            out = out + np.random.rand() + random.random()  # noqa: NPY002 (what old code does)
        return out


def run(folder, *, stop=None, resume=None, workers=0, every=1):
    pl.seed_everything(5, workers=True, verbose=False)
    callbacks = [
        ExactResume(),
        ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1),
        *([StopAt(stop)] if stop else []),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        max_epochs=3,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        deterministic=True,
    )
    module = RestoreTask(Noisy(), lr=0.01, warmup_steps=2, ema_decay=0.9)
    # Five batches an epoch, the last one smaller; larger crops in the second epoch.
    data = RestoreDataModule(
        PhantomPairs(14, crop=8, seed=3), PhantomPairs(2, crop=8), batch_size=3, num_workers=workers, crops=[(1, 12)]
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except Stop:
        return None
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_two_runs_have_equal_weights(whole, tmp_path):
    again = run(tmp_path)
    assert all(torch.equal(again[key], whole[key]) for key in whole)


# The checkpoint lies a step earlier: the first step, inside an epoch, at the end of one, before the last step.
@pytest.mark.parametrize(("stop", "workers"), [(2, 0), (8, 2), (11, 0), (15, 0)])
def test_a_stopped_run_ends_with_the_same_weights(whole, tmp_path, stop, workers):
    assert run(tmp_path, stop=stop, workers=workers) is None
    last = max(Path(tmp_path).glob("step=*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    resumed = run(tmp_path, resume=last, workers=workers)
    different = [key for key in whole if not torch.equal(resumed[key], whole[key])]
    assert not different


def test_without_the_generators_the_weights_differ(whole, tmp_path, monkeypatch):
    # Shows that the test above can fail.
    monkeypatch.setattr(ExactResume, "load_state_dict", lambda self, state: None)
    run(tmp_path, stop=7)
    resumed = run(tmp_path, resume=tmp_path / "step=6.ckpt")
    assert any(not torch.equal(resumed[key], whole[key]) for key in whole)
