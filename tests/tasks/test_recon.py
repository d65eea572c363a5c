"""Training of reconstruction networks: losses of the originals, every network learns, it resumes."""

import importlib
import pkgutil

import pytest
import pytorch_lightning as pl
import torch
from safetensors import safe_open

import medseq.models
from medseq.data.recon import PhantomScans, ReconBatch, collate
from medseq.errors import InputError
from medseq.models.recon_modl import MoDL
from medseq.ops.recon_quality import uniform_ssim
from medseq.tasks.recon import ReconDataModule, ReconTask, centre
from medseq.tasks.recon_loss import ReconLoss, ssim_loss

MODULES = [info.name for info in pkgutil.iter_modules(medseq.models.__path__) if info.name.startswith("recon_")]
NETWORKS = [
    (module, name)
    for module in MODULES
    for name, net in importlib.import_module(f"medseq.models.{module}").tiny().items()
    # The data sets are centred and unitary; other conventions are tested with their networks.
    if list(net.parameters()) and getattr(net, "fft_origin", "centre") == "centre"
]


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
    defaults = {"loss": ReconLoss(relative=1.0, weighting="mean"), "lr": 3e-3, "ema_decay": 0.95}
    return ReconTask(MoDL(cascades=2, width=8, iterations=3), **{**defaults, **keywords})


def complex_pair(x):
    return torch.view_as_complex(x.contiguous())


@pytest.mark.parametrize("name", ["3_mgu_2casc_8t_noinitpred", "4_indrnn_2casc_1t", "5_indrnn_rsscombine_2casc_8t"])
def test_accumulated_losses_of_the_original(name, repo_root):
    # One image a batch: the original divides by the maximum over the batch, which is then the image's own.
    with safe_open(repo_root / f"tests/golden/cirim_{name}.safetensors", "pt") as file:
        data = {key: file.get_tensor(key) for key in file.keys()}
    predictions = []
    while f"out.pred.c{len(predictions)}.t0" in data:
        prefix = f"out.pred.c{len(predictions)}.t"
        count = sum(key.startswith(prefix) for key in data)
        predictions.append([complex_pair(data[f"{prefix}{step}"]) for step in range(count)])
    target = complex_pair(data["in.target"])
    losses = {
        "l1_accumulated": ReconLoss(l1=1, weighting="logarithmic", own_maximum=True),
        "l1_last": ReconLoss(l1=1, own_maximum=True),
        "ssim_accumulated": ReconLoss(ssim=1, weighting="logarithmic", own_maximum=True),
    }
    for key, loss in losses.items():
        assert float(loss(predictions, target)) == pytest.approx(float(data[f"out.loss_{key}"]), rel=1e-5), key


def test_ssim_loss_is_the_metric(seed):
    torch.manual_seed(seed)
    target = torch.rand(1, 24, 21)
    x = target + 0.1 * torch.randn(1, 24, 21)
    wanted = uniform_ssim(x[0].double().numpy(), target[0].double().numpy(), float(target.max()))
    # The original subtracts squared means in float32, too.
    assert float(1 - ssim_loss(x, target)) == pytest.approx(wanted, abs=1e-5)
    assert float(ssim_loss(target, target)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="too small"):
        ssim_loss(x[..., :6], target[..., :6])


def test_terms_and_weightings(seed):
    torch.manual_seed(seed)
    target = torch.randn(2, 9, 8, dtype=torch.complex64)
    first, last = (target * factor for factor in (0.5, 0.9))
    predictions = [[first], [last]]
    relative = ReconLoss(relative=1)
    assert float(relative(predictions, target)) == pytest.approx(0.2, rel=1e-4)
    mean = ReconLoss(relative=1, weighting="mean")
    assert float(mean(predictions, target)) == pytest.approx(0.2 + 0.25 * 1.0, rel=1e-4)
    nmse = ReconLoss(nmse=2)
    assert float(nmse(predictions, target)) == pytest.approx(2 * 0.01, rel=1e-4)
    exact = target.clone().requires_grad_()
    relative([[exact]], target).backward()
    assert torch.isfinite(torch.view_as_real(exact.grad)).all()
    with pytest.raises(InputError, match="positive weight"):
        ReconLoss()
    with pytest.raises(InputError, match="last, mean or logarithmic"):
        ReconLoss(l1=1, weighting="none")


@pytest.mark.parametrize(("module", "name"), NETWORKS)
def test_every_network_trains(module, name):
    torch.manual_seed(0)
    net = importlib.import_module(f"medseq.models.{module}").tiny()[name]
    batch = collate([PhantomScans(2, shape=(20, 24), coils=3)[i] for i in range(2)])
    module_ = ReconTask(net, ReconLoss(l1=1.0, ssim=1.0, weighting="mean"))
    predictions = module_.predictions(net, batch)
    target = module_.target(net, batch)
    assert all(x.shape == target.shape for steps in predictions for x in steps)
    assert target.is_complex() == predictions[-1][-1].is_complex()
    before = module_.criterion(predictions, target)
    before.backward()
    # A step along the gradient that should lower the loss by a thousandth: the slope holds that far.
    slope = sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None)
    scale = 1e-3 * before.item() / slope
    with torch.no_grad():
        for p in net.parameters():
            if p.grad is not None:
                p -= scale * p.grad
        after = module_.criterion(module_.predictions(net, batch), target)
    assert after.item() < before.item()


def test_training_beats_zero_filling_by_3_db(tmp_path):
    module, run = task(), trainer(tmp_path, max_epochs=1)
    data = ReconDataModule(PhantomScans(400, seed=1), PhantomScans(8, shape=(48, 40), seed=2), batch_size=4)
    run.fit(module, data)
    metrics = {key: float(value) for key, value in run.callback_metrics.items()}
    assert metrics["val/psnr"] > metrics["input/psnr"] + 3.0
    assert metrics["val/ssim"] > metrics["input/ssim"]
    assert metrics["val/nrmse"] < metrics["input/nrmse"]


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    def data():
        return ReconDataModule(PhantomScans(6, shape=(16, 18)), PhantomScans(1, shape=(16, 18)), batch_size=2)

    whole = task(weight_decay=1e-3, scalar_lr=3.0)
    trainer(tmp_path, max_epochs=2).fit(whole, data())
    half = task(weight_decay=1e-3, scalar_lr=3.0)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
            trainer.should_stop = True

    trainer(tmp_path, max_epochs=2, callbacks=[Stop()]).fit(half, data())
    resumed = task(weight_decay=1e-3, scalar_lr=3.0)
    trainer(tmp_path, max_epochs=2).fit(resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(half), weights(whole))


def test_single_numbers_learn_at_their_own_rate(tmp_path):
    module = task(scalar_lr=3.0, weight_decay=0.1)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, ReconDataModule(PhantomScans(1, shape=(16, 16)), PhantomScans(1, shape=(16, 16))))
    groups = run.optimizers[0].param_groups
    assert [group["initial_lr"] for group in groups] == pytest.approx([3e-3, 9e-3])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() == 0 for p in groups[1]["params"])


@pytest.mark.parametrize("size", [(20, 22), (21, 19), (8, 9)])
def test_centre_keeps_the_middle_pixel(size):
    image = torch.zeros(1, *size)
    image[0, size[0] // 2, size[1] // 2] = 1
    cut = centre(image, (12, 11))
    assert cut.shape[-2:] == (min(12, size[0]), min(11, size[1]))
    assert float(cut[0, cut.shape[-2] // 2, cut.shape[-1] // 2]) == 1


def test_a_loss_that_is_not_finite_stops(tmp_path):
    class Broken(PhantomScans):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample._replace(target=sample.target * float("nan"))

    run = trainer(tmp_path, max_epochs=1)
    with pytest.raises(InputError, match="not finite"):
        run.fit(task(), ReconDataModule(Broken(1, shape=(16, 16)), PhantomScans(1, shape=(16, 16))))


def test_batch_is_the_contract():
    batch = collate([PhantomScans(2)[0], PhantomScans(2)[1]])
    assert isinstance(batch, ReconBatch)
    assert batch.masked_kspace.shape == (2, 4, 32, 32)
    assert batch.mask.shape == (2, 1, 1, 32)
    assert batch.mask.dtype == torch.bool
    assert batch.target.shape == (2, 32, 32)
    assert bool((batch.masked_kspace[~batch.mask.expand_as(batch.masked_kspace)] == 0).all())


def test_the_learning_rate_drops_by_steps_if_asked(tmp_path):
    module = task(lr=1e-3, min_lr=0.0, warmup_steps=2, drop_every=3, drop_factor=0.2)
    run, rates = trainer(tmp_path, max_epochs=1), []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run.callbacks.append(Watch())
    run.fit(module, ReconDataModule(PhantomScans(7, shape=(16, 16)), PhantomScans(1, shape=(16, 16))))
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 2e-4, 2e-4, 2e-4, 4e-5])
    with pytest.raises(InputError, match="not a schedule"):
        task(drop_every=0)
