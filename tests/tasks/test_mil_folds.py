"""Nested cross-validation: parts by patient, resumable, and no score from cases that chose anything."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from medseq.data.mil import BagDataset
from medseq.data.mil_synthetic import SyntheticBags
from medseq.errors import InputError
from medseq.models.mil_pooling import LinearProbe
from medseq.tasks.mil import MILDataModule, MILTask
from medseq.tasks.mil_folds import cross_validate
from medseq.tasks.mil_loss import MILLoss


def module(**options):
    parts = [
        SyntheticBags(24, part, dim=4, instances=(3, 6), effect=8.0, **options) for part in ("train", "val", "all")
    ]
    return MILDataModule(*parts, batch_size=8)


class Builder:
    """Builds trainings and remembers what they saw."""

    def __init__(self, loss=None, width=2, fail_at=None):
        self.loss, self.width, self.fail_at, self.seen = loss, width, fail_at, []

    def __call__(self, folder, seed):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            task = MILTask(LinearProbe(in_dim=4, n_classes=self.width), self.loss, lr=0.05)
        monitor = pl.callbacks.ModelCheckpoint(dirpath=folder, monitor="val/loss")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            callbacks=[monitor],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
        )
        self.seen.append(trainer)
        return task, trainer

    def parts(self):
        return [(set(run.datamodule.train.patient_ids), set(run.datamodule.val.patient_ids)) for run in self.seen]


def test_every_patient_is_tested_once_a_repeat_by_a_model_that_never_saw_them(tmp_path):
    build = Builder()
    data = module()
    found = cross_validate(build, data, tmp_path, folds=3, repeats=2)
    everyone = set(data.cohort.patient_ids)
    for repeat in (0, 1):
        assert sorted(np.array(found.patient)[found.repeat == repeat]) == sorted(everyone)
    for number, (train, val) in enumerate(build.parts()):
        own = (found.repeat == number // 3) & (found.fold == number % 3)
        tested = set(np.array(found.patient)[own])
        assert train | val | tested == everyone
        assert len(train) + len(val) + len(tested) == len(everyone)
    np.testing.assert_allclose(found.probability.sum(1), 1)


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path):
    whole = cross_validate(Builder(), module(), tmp_path / "whole", folds=3)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(Builder(fail_at=2), module(), tmp_path / "cut", folds=3)
    assert not (tmp_path / "cut" / "predictions.csv").exists()
    kept = (tmp_path / "cut" / "repeat_0" / "fold_1" / "predictions.csv").stat()
    # Not the whole of it: reading changes the time of the last access.
    kept_as = (kept.st_ino, kept.st_mtime_ns)
    lines, build = [], Builder()
    resumed = cross_validate(build, module(), tmp_path / "cut", folds=3, report=lines.append)
    assert len(build.seen) == 1
    assert [line.endswith("kept") for line in lines] == [True, True, False]
    kept = (tmp_path / "cut" / "repeat_0" / "fold_1" / "predictions.csv").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == kept_as
    assert resumed.patient == whole.patient
    # Same seeds, same data, same machine.
    np.testing.assert_allclose(resumed.probability, whole.probability, rtol=1e-6)


def test_another_plan_in_the_same_folder_is_refused(tmp_path):
    cross_validate(Builder(), module(), tmp_path, folds=3, settings={"model": "abc"})
    for changed in ({"folds": 4}, {"seed": 1}, {"settings": {"model": "xyz"}}):
        arguments = {"folds": 3, "settings": {"model": "abc"}, **changed}
        with pytest.raises(InputError, match="another cross-validation"):
            cross_validate(Builder(), module(), tmp_path, **arguments)
    assert json.loads((tmp_path / "plan.json").read_text())["folds"] == 3


def test_survival_has_bins_of_each_training_part(tmp_path):
    build = Builder(MILLoss("survival"), width=4)
    data = module(target="survival")
    found = cross_validate(build, data, tmp_path, folds=2)
    assert found.risk.shape == found.months.shape == (24,)
    assert found.probability is None
    edges = {run.datamodule.train.bins.inner for run in build.seen}
    assert len(edges) == 2


def test_labels_of_the_test_fold_change_nothing_that_is_said_of_it(tmp_path, monkeypatch):
    data = module()
    parts = data.cohort.folds(2, np.random.default_rng(0))[:1]
    monkeypatch.setattr(BagDataset, "folds", lambda *_, **__: parts)
    first = cross_validate(Builder(), data, tmp_path / "a", folds=2)
    other = module()
    for number in parts[0].test:
        case = other.own_cohort.cases[number]
        other.own_cohort.cases[number] = case._replace(label=1 - case.label)
    found = cross_validate(Builder(), other, tmp_path / "b", folds=2)
    np.testing.assert_array_equal(found.label, 1 - first.label)
    # Same seeds, same data, same machine.
    np.testing.assert_allclose(found.probability, first.probability, rtol=1e-6)
    np.testing.assert_array_equal(found.call, first.call)


def test_too_many_folds_for_a_rare_class_are_refused(tmp_path):
    with pytest.raises(InputError, match="absent from a fold"):
        cross_validate(Builder(), module(), tmp_path, folds=20)


def test_a_trainer_without_checkpoints_is_refused(tmp_path):
    class Careless(Builder):
        def __call__(self, folder, seed):
            task, _ = super().__call__(folder, seed)
            quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            return task, pl.Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **quiet)

    with pytest.raises(InputError, match="left no checkpoint"):
        cross_validate(Careless(), module(), tmp_path, folds=2)
