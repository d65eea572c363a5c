"""Small bundles and volumes for the command line's tests."""

from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """A bundle of a small untrained network for MR volumes."""
    from medseq.inference.bundle import save_bundle
    from medseq.models.restore_rwkv import RestoreRWKV

    sizes = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 0, "shuffle": 2, "residual_scale": 0.1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = RestoreRWKV(**sizes).state_dict()
    folder = tmp_path_factory.mktemp("bundle") / "tiny-mr"
    config = {
        "name": "tiny-mr",
        "version": "1",
        "task": "restore",
        "model": {"class_path": "medseq.models.restore_rwkv.RestoreRWKV", "init_args": sizes},
        "input": {"kind": "volume", "modality": ["MR"], "units": "1"},
        "preprocess": [{"class_path": "medseq.data.transforms.RobustScale"}],
    }
    save_bundle(folder, config, state, metadata={"intended_use": "tests"}, card="# Tiny\n")
    return folder


@pytest.fixture
def volumes(tmp_path) -> Path:
    """A folder with two NIfTI volumes, written by nibabel and not by medseq."""
    import nibabel

    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    random = np.random.default_rng(seed)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("JANE_DOE.nii.gz", "b.nii"):
        array = random.integers(0, 900, (14, 11, 2), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.9, 0.9, 2.0, 1.0])), folder / name)
    return folder
