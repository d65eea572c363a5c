"""A bundle of a small untrained network for CT volumes."""

from pathlib import Path


def tiny_ct_bundle(folder: Path) -> Path:
    import torch

    from medseq.inference.bundle import save_bundle
    from medseq.models.restore_unet import RestoreUNet

    sizes = {"in_channels": 2, "out_channels": 1, "dims": [4], "num_blocks": [1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = RestoreUNet(**sizes).state_dict()
    config = {
        "name": folder.name,
        "version": "1",
        "task": "restore",
        "model": {"class_path": "medseq.models.restore_unet.RestoreUNet", "init_args": sizes},
        "input": {"kind": "volume", "modality": ["CT"], "units": "HU", "channels": 2},
        "preprocess": [{"class_path": "medseq.data.transforms.HounsfieldChannels"}],
        "output": {"kind": "volume", "units": "HU"},
    }
    save_bundle(folder, config, state, metadata={"intended_use": "tests"}, card="# Tiny\n")
    return folder
