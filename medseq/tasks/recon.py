"""Training of reconstruction networks: the Lightning module and its thin data module.

The task knows no architecture: every network of `medseq.models` that fulfils the reconstruction contract is trained
alike. Batches are already divided by a scale that measured data alone decide; losses and scores are computed there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from medseq.data.recon import ReconBatch, collate
from medseq.errors import InputError
from medseq.ops.coils import rss, sens_reduce
from medseq.ops.espirit import estimate_maps
from medseq.ops.fourier import ifft2
from medseq.tasks.averaged import AveragedTask
from medseq.tasks.data_module import TaskDataModule
from medseq.tasks.recon_loss import ReconLoss

__all__ = ["ReconDataModule", "ReconTask"]


class ReconTask(AveragedTask):
    """Supervised reconstruction: `ReconLoss`, Adam, linear warm-up, cosine decay and averaged weights.

    Args:
        net: Network under the reconstruction contract (`medseq.nn.recon`).
        loss: Terms and their weights; None for L1 + SSIM of the last prediction.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        betas: Adam's decay rates.
        warmup_steps: Optimizer steps of linear warm-up.
        weight_decay: Decoupled weight decay.
        scalar_lr: Factor on the learning rate of single numbers (data consistency weights).
        ema_decay: Decay of the averaged weights, which are the ones that are validated and shipped.
        clip_norm: Gradients are scaled down to this norm.
        drop_every: See `AveragedTask`.
        drop_factor: Same.
        bundle: What `medseq bundle` writes into bundle.yaml beside the model.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: ReconLoss | None = None,
        lr: float = 1e-3,
        min_lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        scalar_lr: float = 1.0,
        ema_decay: float = 0.999,
        clip_norm: float = 1.0,
        drop_every: int | None = None,
        drop_factor: float = 0.2,
        bundle: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            net,
            lr=lr,
            min_lr=min_lr,
            betas=betas,
            warmup_steps=warmup_steps,
            ema_decay=ema_decay,
            clip_norm=clip_norm,
            weight_decay=weight_decay,
            scalar_lr=scalar_lr,
            drop_every=drop_every,
            drop_factor=drop_factor,
        )
        self.criterion = loss or ReconLoss(l1=1.0, ssim=1.0)
        self.bundle = bundle or {}

    def on_fit_start(self) -> None:
        """Refuse samples of another Fourier convention than the network's.

        Raises:
            InputError: Naming both.
        """
        network = _convention(self.net)
        for name in ("train", "val"):
            data = getattr(getattr(self.trainer, "datamodule", None), name, None)
            if data is not None and _convention(data) != network:
                raise InputError(
                    "samples and network follow different Fourier conventions",
                    where=f"data.{name}",
                    found="-".join(_convention(data)),
                    wanted="-".join(network),
                    remedy="give both the same fft_origin and fft_norm",
                )

    def predictions(self, net: nn.Module, batch: ReconBatch) -> list[list[Tensor]]:
        """Images ``[cascade][step]``, complex or root sum of squares as the network makes them."""
        # RecurrentVarNet's states may start from an image: the zero-filled one, as its original does.
        start = _zero_filled(batch, net) if getattr(net, "start", None) == "input_image" else None
        out = net(batch.masked_kspace, batch.mask, batch.sens_maps, initial_image=start)
        steps = [[_as_image(x, net, batch) for x in cascade] for cascade in out.intermediates or []]
        if not steps:
            return [[out.image]]
        # The result itself, after whatever the network does with its last step.
        steps[-1] = [*steps[-1][:-1], out.image]
        return steps

    def target(self, net: nn.Module, batch: ReconBatch) -> Tensor:
        """The target in the form that the network makes: complex, or its magnitude for root sum of squares."""
        return batch.target if getattr(net, "image_kind", "complex") == "complex" else batch.target.abs()

    def training_step(self, batch: ReconBatch, batch_idx: int) -> Tensor:
        """One step."""
        shape = batch.recon_shape
        predictions = [[centre(x, shape) for x in steps] for steps in self.predictions(self.net, batch)]
        return self.finite(self.criterion(predictions, centre(self.target(self.net, batch), shape)))

    def evaluation_step(self, batch: ReconBatch, batch_idx: int, stage: str) -> None:
        """PSNR, SSIM and NRMSE of the averaged weights' magnitudes, and of the zero-filled image.

        PSNR and SSIM have the target's maximum as data range, slice by slice; NRMSE is ``||x - t|| / ||t||``.
        """
        from medseq.tasks.recon_loss import ssim_loss

        wanted = centre(batch.target, batch.recon_shape).abs()
        out = centre(self.predictions(self.ema, batch)[-1][-1], batch.recon_shape).abs()
        images = {"input": centre(_zero_filled(batch, self.ema), batch.recon_shape).abs(), stage: out}
        for name, image in images.items():
            error = (image - wanted).square().mean(dim=(1, 2)).clamp_min(1e-12)
            psnr = 10 * torch.log10(wanted.amax(dim=(1, 2)).square() / error)
            nrmse = torch.sqrt(error / wanted.square().mean(dim=(1, 2)))
            size = len(wanted)
            self.log_scores({f"{name}/psnr": psnr.mean()}, size, prog_bar=name != "input")
            self.log_scores({f"{name}/nrmse": nrmse.mean(), f"{name}/ssim": 1 - ssim_loss(image, wanted)}, size)
        if batch_idx == 0:
            row = torch.cat([images["input"][:1], out[:1], wanted[:1]], dim=-1)
            self.log_picture(f"{stage}/input_result_target", row / wanted[0].max())


class ReconDataModule(TaskDataModule):
    """Loaders over data sets of `medseq.data.recon.ReconSample`.

    Args:
        train: Training set.
        val: Validation set.
        test: Test set, for ``medseq test``; None if there is none.
        batch_size: Samples a step and process; 1 where matrix sizes or coils vary.
        num_workers: Loader processes; 0 loads in the training process.
    """

    collate = staticmethod(collate)

    def __init__(
        self, train: Dataset, val: Dataset, test: Dataset | None = None, batch_size: int = 1, num_workers: int = 0
    ) -> None:
        super().__init__(train, val, test, batch_size=batch_size, num_workers=num_workers)


def centre(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The middle ``shape`` of images ``(…, row, col)``; sizes that are smaller stay."""
    for axis, size in zip((-2, -1), shape, strict=True):
        if image.shape[axis] > size:
            image = image.narrow(axis, image.shape[axis] // 2 - size // 2, size)
    return image


def _convention(owner: object) -> tuple[str, str]:
    """Fourier origin and norm of a network or a data set; those that say nothing are centred and unitary."""
    return getattr(owner, "fft_origin", "centre"), getattr(owner, "fft_norm", "ortho")


def _fft(net: nn.Module) -> dict[str, Any]:
    origin, norm = _convention(net)
    return {"origin": origin, "norm": norm}


def _as_image(x: Tensor, net: nn.Module, batch: ReconBatch) -> Tensor:
    """An intermediate prediction as an image: some networks hand out multi-coil k-space."""
    if x.dim() == 3:
        return x
    if getattr(net, "image_kind", "complex") == "rss":
        return rss(ifft2(x, **_fft(net)))
    maps = batch.sens_maps
    if maps is None:
        maps = estimate_maps(batch.masked_kspace, batch.mask, "acs", **_fft(net))
    return sens_reduce(x, maps, **_fft(net))


def _zero_filled(batch: ReconBatch, net: nn.Module) -> Tensor:
    if batch.sens_maps is None:
        return rss(ifft2(batch.masked_kspace, **_fft(net)))
    return sens_reduce(batch.masked_kspace, batch.sens_maps, **_fft(net))
