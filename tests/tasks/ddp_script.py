"""One training on so many processes, whose weights, gradients and scores go into a file; run by test_distributed."""

import json
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch

from medseq.data.mil_synthetic import SyntheticBags
from medseq.data.restore import PhantomPairs
from medseq.models.mil_abmil import ABMIL
from medseq.models.restore_unet import RestoreUNet
from medseq.tasks.mil import MILDataModule, MILTask
from medseq.tasks.restore import RestoreDataModule, RestoreTask


class Gradients(pl.Callback):
    """Keeps the gradients of the first step, after the processes have exchanged them and before they are clipped."""

    def on_after_backward(self, trainer, module):
        if trainer.global_step == 0:
            self.first = torch.cat([p.grad.flatten() for p in module.net.parameters() if p.grad is not None])


def build(name, processes):
    torch.manual_seed(1)
    if name == "restore":
        # Five validation samples: one process has more of them than the other.
        data = RestoreDataModule(PhantomPairs(16, crop=16), PhantomPairs(5, crop=16), batch_size=4 // processes)
        return RestoreTask(
            RestoreUNet(1, 1, dims=(4, 8, 8), num_blocks=(1, 1, 1)), lr=1e-3, loss_unit=100.0, ema_decay=0.5
        ), data
    data = MILDataModule(
        SyntheticBags(patients=31, role="train", seed=1), SyntheticBags(patients=31, role="val", seed=1)
    )
    return MILTask(ABMIL(in_dim=16, d_model=8, attention_dim=8, dropout=0.0), ema_decay=0.5), data


def main(name, processes, out):
    warnings.simplefilter("ignore")
    module, data = build(name, processes)
    kept = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        # One bag a step and process: the gradients of two make up the same step.
        accumulate_grad_batches=2 // processes if name == "mil" else 1,
        max_steps=3,
        val_check_interval=1.0,
        check_val_every_n_epoch=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[kept],
        use_distributed_sampler=True,
    )
    trainer.fit(module, datamodule=data)
    # The validation within a training cut short by max_steps may not run; this one always does.
    (scores,) = trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        torch.save(
            {"net": module.net.state_dict(), "ema": module.ema.state_dict(), "gradients": kept.first}, f"{out}.pt"
        )
        Path(f"{out}.json").write_text(json.dumps(scores))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
