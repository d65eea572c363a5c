"""Training of restoration models: it learns, it averages, it resumes, and it stops on nonsense."""

import pytest
import pytorch_lightning as pl
import torch

from medseq.data.restore import PhantomPairs, RestoreBatch, Sample
from medseq.data.transforms import HounsfieldChannels
from medseq.errors import InputError
from medseq.models.restore_rwkv import restore_rwkv_light
from medseq.tasks.restore import RestoreDataModule, RestoreTask, current_crop


def trainer(tmp_path, **keywords):
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": tmp_path,
        "reload_dataloaders_every_n_epochs": 1,
    }
    return pl.Trainer(**{**defaults, **keywords})


def task(**keywords):
    torch.manual_seed(0)
    net = restore_rwkv_light(2, 1, dim=8, num_blocks=(1, 1, 1, 1))
    defaults = {"lr": 4e-3, "loss_unit": 100.0, "loss_window": (-160.0, 240.0), "ema_decay": 0.9}
    return RestoreTask(net, [HounsfieldChannels()], **{**defaults, **keywords})


class Cases(PhantomPairs):
    """The same eight samples again and again."""

    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(index % 8)


def test_overfits_eight_cases(tmp_path):
    module, run = task(), trainer(tmp_path, max_epochs=1)
    run.fit(module, RestoreDataModule(Cases(480, crop=24), Cases(8, crop=24), batch_size=8))
    metrics = {key: float(value) for key, value in run.callback_metrics.items()}
    # The identity is the start; 60 steps on eight 24 x 24 images of 40 HU noise are worth at least 3 dB.
    assert metrics["val/psnr"] > metrics["input/psnr"] + 3.0
    assert metrics["val/ssim"] > metrics["input/ssim"]


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def data():
        return RestoreDataModule(PhantomPairs(16, crop=16), PhantomPairs(2, crop=16), batch_size=4, crops=[(1, 24)])

    whole = task()
    trainer(tmp_path, max_epochs=2).fit(whole, data())

    half = task()

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
            trainer.should_stop = True

    trainer(tmp_path, max_epochs=2, callbacks=[Stop()]).fit(half, data())
    resumed = task()
    trainer(tmp_path, max_epochs=2).fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(half), weights(whole))


def test_averaged_weights_lag_behind_and_are_not_trained():
    module = task()
    module.trainer = None
    assert not any(p.requires_grad for p in module.ema.parameters())
    assert torch.equal(weights(module.net), weights(module.ema))


def test_loss_counts_the_window_fully_and_the_rest_a_little():
    module = task(wide_weight=0.25)
    target = torch.tensor([0.0, 2000.0])
    inside, outside = torch.tensor([10.0, 2000.0]), torch.tensor([0.0, 2010.0])
    assert float(module.loss(inside, target)) == pytest.approx(1.25 * 10 / 100 / 2)
    assert float(module.loss(outside, target)) == pytest.approx(0.25 * 10 / 100 / 2)


def test_a_loss_that_is_not_finite_stops_the_run():
    module = task()
    bad = torch.full((1, 1, 16, 16), float("nan"))
    batch = RestoreBatch(bad, bad, None, torch.ones(1), ["x"])
    with pytest.raises(InputError, match="training loss is not finite"):
        module.training_step(batch, 0)


def test_crop_schedule():
    schedule = [(0, 64), (18, 96), (24, 128)]
    assert [current_crop(schedule, epoch, 32) for epoch in (0, 17, 18, 30)] == [64, 64, 96, 128]
    assert current_crop([], 5, 32) == 32


def test_metrics_are_told_task_by_task(tmp_path):
    class Two(PhantomPairs):
        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(index)._replace(case_id=("ct", "pet")[index % 2])

    run = trainer(tmp_path, max_epochs=1)
    run.fit(task(by_task=True), RestoreDataModule(PhantomPairs(4, crop=16), Two(4, crop=16), batch_size=4))
    metrics = {key: float(value) for key, value in run.callback_metrics.items()}
    # As many samples of both: their mean is that of all.
    for name in ("input", "val"):
        parts = metrics[f"{name}/psnr/ct"], metrics[f"{name}/psnr/pet"]
        assert sum(parts) / 2 == pytest.approx(metrics[f"{name}/psnr"], rel=1e-5)
        assert parts[0] != parts[1]
