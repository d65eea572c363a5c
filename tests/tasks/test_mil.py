"""Training of models of bags: they learn, gradients are accumulated fairly, checkpoints carry the operating point."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from medseq.data.mil import BagCase, BagDataset
from medseq.data.mil_synthetic import SyntheticBags
from medseq.errors import InputError
from medseq.io.features import Bag
from medseq.models.mil_abmil import ABMIL
from medseq.models.mil_clam import CLAM
from medseq.models.mil_fitted import FittedMIL
from medseq.models.mil_pooling import LinearProbe, PoolingMIL
from medseq.tasks.early_stopping import PatientStopping
from medseq.tasks.mil import MILDataModule, MILTask
from medseq.tasks.mil_loss import MILLoss


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


def data(batch_size=8, patients=60, **options):
    parts = [SyntheticBags(patients, part, dim=8, instances=(5, 20), **options) for part in ("train", "val")]
    return MILDataModule(*parts, batch_size=batch_size)


def fit(tmp_path, net, cases, epochs=4, *, options=None, **task):
    task = MILTask(net, **{"lr": 0.02, "ema_decay": 0.0, **task})
    run = trainer(tmp_path, max_epochs=epochs, **(options or {}))
    run.fit(task, datamodule=cases)
    return task, {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.fixture(autouse=True)
def seeded(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@pytest.mark.parametrize("kind", ["binary", "single logit", "three", "ordinal", "survival", "clam"])
def test_it_learns(kind, tmp_path, seed):
    width, loss, options = {
        "binary": (2, None, {}),
        "single logit": (1, None, {}),
        "three": (3, MILLoss(label_smoothing=0.05), {"classes": 3}),
        "ordinal": (2, MILLoss("ordinal"), {"classes": 3}),
        "survival": (4, MILLoss("survival"), {"target": "survival"}),
        "clam": (2, MILLoss(instance_weight=0.3, instance_samples=2), {}),
    }[kind]
    net = LinearProbe(in_dim=8, n_classes=width, pool="mean+max")
    if kind == "clam":
        net = CLAM(in_dim=8, n_classes=2, d_model=16, attention_dim=8, dropout=0.0)
    net = FittedMIL(net, feature_dim=8, embedding_dim=16)
    cases = data(patients=75, effect=6.0, seed=seed % 1000, witness_share=0.4, val_share=0.5, **options)
    _, metrics = fit(tmp_path, net, cases, 6, loss=loss)
    metric = "val/c_index" if kind == "survival" else "val/auroc"
    # Chance is 0.5; witnesses six sd away are plain to see, the size of a cluster a little less so.
    assert metrics[metric] > (0.6 if kind in ("survival", "ordinal") else 0.8)


class Recorder(nn.Module):
    """Adds up the gradients that reach one weight, by having no other."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, features, coords=None, lengths=None):
        from medseq.nn.mil import MILOutput

        score = (features.sum(1) / lengths[:, None]) @ self.weight
        return MILOutput(torch.stack([torch.zeros_like(score), score], 1), features[..., 0])


@pytest.mark.parametrize(("bags", "group"), [(10, 4), (8, 4), (3, 5)])
def test_leftover_gradients_are_neither_lost_nor_carried_over(bags, group, tmp_path, seed):
    rng = np.random.default_rng(seed)
    cases = [
        BagCase(str(i), (Bag(rng.normal(size=(4, 8)).astype(np.float32), str(i), str(i)),), label=i % 2)
        for i in range(bags)
    ]
    val = [case._replace(patient_id=f"v{case.patient_id}") for case in cases[:2]]
    module = MILDataModule(BagDataset(cases, "train"), BagDataset(val, "val"))
    steps = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, task, optimizer):
            steps.append(task.net.weight.grad.clone())

    # With next to no learning rate all gradients are taken at the same weights.
    fit(
        tmp_path,
        Recorder(),
        module,
        2,
        lr=1e-12,
        options={"accumulate_grad_batches": group, "callbacks": [Watch()]},
    )
    groups = -(-bags // group)
    assert len(steps) == 2 * groups
    means = torch.stack([torch.from_numpy(case.slides[0].features.mean(0)) for case in cases])
    sign = torch.tensor([0.5 - case.label for case in cases])[:, None]
    each = sign * means
    sizes = torch.tensor([min(group, bags - group * i) for i in range(groups)], dtype=torch.float32)
    for epoch in (0, 1):
        own = torch.stack(steps[epoch * groups : (epoch + 1) * groups])
        # Weighted by their bags, the steps of an epoch are the gradient of the whole: each bag once, at one weight.
        torch.testing.assert_close((own * sizes[:, None]).sum(0), each.sum(0), rtol=1e-4, atol=1e-5)


def test_the_optimizer_of_the_original_is_the_default(tmp_path):
    task, _ = fit(tmp_path, LinearProbe(in_dim=8), data(), 1, lr=2e-4)
    (optimizer,) = [task.optimizers().optimizer]
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.param_groups[0]["weight_decay"] == 1e-5
    # No schedule: the rate at the end is that of the start.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)
    for own, averaged in zip(task.net.parameters(), task.ema.parameters(), strict=True):
        assert torch.equal(own, averaged)


def test_a_cosine_falls_and_decay_may_be_decoupled(tmp_path):
    task, _ = fit(tmp_path, LinearProbe(in_dim=8), data(), 2, lr=0.01, min_lr=1e-4, decoupled=True)
    optimizer = task.optimizers().optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] < 0.003


def test_the_checkpoint_carries_operating_point_and_spread(tmp_path):
    net = FittedMIL(ABMIL(in_dim=8, d_model=8, attention_dim=4), feature_dim=8, embedding_dim=8)
    keep = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, monitor="val/loss")
    cases = data(effect=6.0)
    task, _ = fit(tmp_path, net, cases, 3, options={"enable_checkpointing": True, "callbacks": [keep]})
    saved = torch.load(keep.best_model_path, weights_only=True)
    assert saved["output"]["target"] == "class"
    assert 0.05 <= saved["output"]["temperature"] <= 20
    assert 0 < saved["output"]["threshold"] < 1
    assert saved["validation"]["patients"] == len(cases.val.cases)
    assert sum(point["cases"] for point in saved["validation"]["calibration"]) == len(cases.val.cases)
    other = MILTask(FittedMIL(ABMIL(in_dim=8, d_model=8, attention_dim=4), feature_dim=8, embedding_dim=8))
    other.load_state_dict(saved["state_dict"])
    assert other.ema.knows_features
    assert other.ema.knows_embeddings
    foreign = torch.full((30, 8), 40.0)
    embedding = other.ema.eval()(foreign).embedding
    assert other.ema.distance(embedding) > other.ema.distance_limit
    found = other.predict(cases.val)
    assert found.patient == cases.val.patient_ids


def test_fine_tuning_keeps_the_scale_of_the_features(tmp_path):
    net = FittedMIL(LinearProbe(in_dim=8), feature_dim=8, embedding_dim=8)
    net.fit_features([torch.randn(50, 8) * 9 + 100])
    before = net.feature_mean.clone()
    task, _ = fit(tmp_path, net, data(), 1)
    assert torch.equal(task.ema.feature_mean, before)


def test_balanced_classes_weigh_the_rare_one_more(tmp_path):
    task, _ = fit(
        tmp_path, LinearProbe(in_dim=8, n_classes=3), data(classes=3, patients=61), 1, class_weight="balanced"
    )
    assert task._weights.shape == (3,)
    task, _ = fit(tmp_path, LinearProbe(in_dim=8), data(), 1, class_weight=[1.0, 4.0])
    assert task._weights.tolist() == [1.0, 4.0]


class Broken(LinearProbe):
    def forward(self, features, coords=None, lengths=None):
        out = super().forward(features, coords, lengths)
        return out._replace(logits=out.logits * float("nan"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError, match="training loss is not finite"):
        fit(tmp_path, Broken(in_dim=8), data(), 1)


def test_a_patient_in_both_parts_is_refused():
    cases = SyntheticBags(30, "train", dim=8)
    with pytest.raises(InputError, match=f"{len(cases.cases)} in both"):
        MILDataModule(cases, cases)


def test_the_cohort_is_everyone_unless_it_is_given():
    module = data()
    both = {*module.train.patient_ids, *module.val.patient_ids}
    assert set(module.cohort.patient_ids) == both
    whole = SyntheticBags(60, "all", dim=8)
    assert len(MILDataModule(module.train, module.val, whole).cohort.cases) == 60


@pytest.mark.parametrize(("start", "epochs"), [(0, 3), (6, 8)])
def test_stopping_waits_for_its_first_epoch(start, epochs, tmp_path):
    stop = PatientStopping(monitor="val/loss", patience=2, start_epoch=start)
    # Nothing is learnt, so nothing improves after the first validation.
    net = PoolingMIL(in_dim=8, d_model=4, dropout=0.0)
    task = MILTask(net, lr=1e-12)
    run = trainer(tmp_path, max_epochs=12, callbacks=[stop])
    run.fit(task, datamodule=data(patients=20))
    assert run.current_epoch == epochs
