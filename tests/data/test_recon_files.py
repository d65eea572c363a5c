"""Training on files: which slices, which patterns, which scale, and what is refused."""

import copy

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from medseq.data.recon_files import KSpaceFiles
from medseq.errors import InputError, ManifestError
from medseq.models.recon_cirim import CIRIM
from medseq.models.recon_modl import MoDL
from medseq.nn.sensitivity import SensitivityNet
from medseq.ops.coils import rss
from medseq.ops.fourier import fft2, ifft2
from medseq.tasks.recon import ReconDataModule, ReconTask
from medseq.tasks.recon_loss import ReconLoss
from tests.io.kspace_synthetic import head_images, head_kspace

ROWS, COLS = 48, 40


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def write(path, kspace, **more):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        for key, value in more.items():
            file[key] = value
    return path


@pytest.fixture
def manifest(tmp_path, rng):
    """Three people, one of them for validation, four slices each."""
    lines = ["title: Test", "files:"]
    for name, role in (("a", "train"), ("b", "train"), ("c", "val")):
        write(tmp_path / f"{name}.h5", head_kspace(rng, 4, 4, ROWS, COLS))
        lines.append(f"  - {{path: {name}.h5, subject: p-{name}, role: {role}}}")
    (tmp_path / "own.yaml").write_text("\n".join(lines))
    return tmp_path / "own.yaml"


def files(manifest, **keywords):
    return KSpaceFiles(str(manifest), **{"maps": "acs", "accelerations": [3.0], "center_fractions": [0.2], **keywords})


def one_file(tmp_path, kspace, **more):
    write(tmp_path / "one.h5", kspace, **more)
    (tmp_path / "manifest.yaml").write_text("files: [{path: one.h5, subject: x, role: train}]")
    return tmp_path / "manifest.yaml"


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, torch.Tensor))


def test_an_epoch_has_every_slice_once_in_its_own_order(manifest):
    data = files(manifest)
    assert len(data) == 8
    first = [data[i].case_id for i in range(8)]
    data.epoch = 1
    second = [data[i].case_id for i in range(8)]
    assert len(set(first)) == 8
    assert set(second) == set(first)
    assert second != first
    assert len(files(manifest, skip_slices=(1, 2))) == 2
    assert len(files(manifest, length=5)) == 5
    with pytest.raises(IndexError):
        data[8]


def test_samples_are_functions_of_seed_epoch_and_index(manifest):
    data = files(manifest, seed=3, patterns=["random"])
    data[5]
    # As a loader process gets it.
    other = copy.deepcopy(data)
    assert same(data[2], other[2])
    data.epoch = 1
    masks = {data[i].mask.numpy().tobytes() for i in range(8)}
    assert len(masks) > 4


def test_validation_has_one_pattern_a_file_always(manifest):
    data = files(manifest, role="val")
    samples = [data[i] for i in range(4)]
    assert [sample.case_id.rpartition(" ")[2] for sample in samples] == ["0", "1", "2", "3"]
    assert all(torch.equal(sample.mask, samples[0].mask) for sample in samples)
    data.epoch = 4
    assert same(data[1], samples[1])
    assert [files(manifest, role="val", length=2)[i].case_id[-1] for i in range(2)] == ["0", "2"]


@pytest.mark.parametrize(("maps", "scale", "target"), [("acs", "sense", "sense"), (None, "kspace", "rss")])
def test_the_network_sees_measured_samples_alone(tmp_path, rng, maps, scale, target):
    kspace = head_kspace(rng, 1, 4, ROWS, COLS)
    keywords = {"maps": maps, "scale": scale, "target": target}
    before = files(one_file(tmp_path, kspace), **keywords)[0]
    left_out = ~before.mask[0, 0].numpy()
    assert left_out.any()
    kspace[..., left_out] *= 1.5
    after = files(one_file(tmp_path, kspace), **keywords)[0]
    assert after.scale == before.scale
    assert torch.equal(after.masked_kspace, before.masked_kspace)
    assert maps is None or torch.equal(after.sens_maps, before.sens_maps)
    assert not torch.allclose(after.target, before.target)


def test_targets_and_scales(tmp_path, rng):
    kspace = head_kspace(rng, 1, 4, ROWS, COLS)
    path = one_file(tmp_path, kspace)
    images = ifft2(torch.from_numpy(kspace))
    plain = files(path, maps=None, target="rss", scale="kspace")[0]
    assert plain.sens_maps is None
    torch.testing.assert_close(plain.target.real * plain.scale, rss(images)[0], rtol=1e-4, atol=1e-5)
    combined = files(path)[0]
    wanted = (combined.sens_maps.conj() * images[0]).sum(dim=0)
    torch.testing.assert_close(combined.target * combined.scale, wanted, rtol=1e-4, atol=1e-5)
    assert 0.5 < float(torch.quantile(combined.target.abs().flatten(), 0.95)) < 2.0
    assert combined.recon_shape == (ROWS, COLS)


@pytest.mark.parametrize("size", [(ROWS, COLS), (33, 29)])
@pytest.mark.parametrize("norm", ["ortho", "backward"])
def test_the_plain_transform_gives_the_same_images(tmp_path, rng, size, norm):
    path = one_file(tmp_path, head_kspace(rng, 1, 3, *size))
    centre = files(path)[0]
    corner = files(path, fft_origin="corner", fft_norm=norm)[0]
    wanted = ifft2(centre.masked_kspace)
    found = ifft2(corner.masked_kspace, origin="corner", norm=norm)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(corner.target, centre.target)
    # Zeros stay exact through the change, and the mask moves along.
    assert torch.equal((corner.masked_kspace != 0).any(0).any(0), corner.mask[0, 0])
    stored = files(path, fft_origin="corner", fft_norm=norm, as_stored=True)[0]
    assert torch.equal(stored.mask, centre.mask)
    coils = ifft2(stored.masked_kspace, origin="corner", norm=norm)
    torch.testing.assert_close(coils.abs(), wanted.abs(), rtol=1e-4, atol=1e-5)
    again = fft2(stored.target[None] * stored.sens_maps, origin="corner", norm=norm)
    left = torch.where(stored.mask, again - stored.masked_kspace, 0)
    assert float(left.abs().max()) < 0.2 * float(again.abs().max())


def test_masks_of_the_file(tmp_path, rng):
    mask = rng.random((ROWS, COLS)) < 0.4
    mask[16:32, 12:28] = True
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["kspace"] = head_kspace(rng, 2, 4, ROWS, COLS)
        file["masks/poisson"] = mask
    (tmp_path / "manifest.yaml").write_text("files: [{path: one.h5, subject: x, role: train}]")
    sample = files(tmp_path / "manifest.yaml", stored_mask="masks/poisson")[1]
    assert np.array_equal(sample.mask[0].numpy(), mask)
    assert torch.linalg.vector_norm(sample.target) > 0


def test_data_with_gaps_have_no_target(tmp_path, rng):
    kspace = head_kspace(rng, 1, 3, ROWS, COLS)
    kspace[..., 30:] = 0
    files(one_file(tmp_path, kspace))[0]
    kspace[..., 3:12:2] = 0
    with pytest.raises(InputError, match=r"file-.*slice 0: the data are undersampled already.*with gaps"):
        files(one_file(tmp_path, kspace))[0]


def test_calgary_files_lose_their_ends_and_their_tail(tmp_path, rng):
    slices = []
    for _ in range(6):
        # Zero frequency in the middle, image by the plain inverse transform.
        plain = np.fft.fftshift(np.fft.fft2(head_images(rng, 3, ROWS, COLS), norm="ortho"), axes=(-2, -1))
        plain[..., 34:] = 0
        slices.append(np.stack([plain.real, plain.imag], axis=1).reshape(6, ROWS, COLS).transpose(1, 2, 0))
    path = one_file(tmp_path, np.stack(slices).astype("f4"))
    data = files(path, skip_slices=(2, 2), patterns=["poisson"], maps=None, target="rss", scale="kspace")
    assert len(data) == 2
    assert not data[0].mask[..., 34:].any()
    head = data[0].target.abs()
    assert float(head[12:36, 10:30].mean()) > 3 * float(head[:6].mean())


NETWORKS = {
    "modl": (lambda: MoDL(cascades=1, width=8, iterations=2), {}),
    "cirim corner": (
        lambda: CIRIM(1, 2, channels=(4, 4), sens_net=SensitivityNet(2, 2, fft_origin="corner"), fft_origin="corner"),
        {"fft_origin": "corner", "maps": None, "target": "rss", "scale": "kspace"},
    ),
}


def fit(tmp_path, net, manifest, **keywords):
    task = ReconTask(net, ReconLoss(l1=1.0, ssim=1.0), lr=1e-3)
    data = ReconDataModule(files(manifest, **keywords), files(manifest, role="val", **keywords))
    run = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=tmp_path,
        max_steps=2,
        limit_val_batches=1,
        max_epochs=1,
        limit_train_batches=2,
    )
    run.fit(task, data)
    return run.callback_metrics


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_on_files(tmp_path, manifest, name):
    make, keywords = NETWORKS[name]
    metrics = fit(tmp_path, make(), manifest, **keywords)
    assert np.isfinite(float(metrics["val/psnr"]))
    assert float(metrics["input/psnr"]) > 10


def test_another_fourier_convention_is_refused(tmp_path, manifest):
    with pytest.raises(InputError, match=r"different Fourier conventions \(found centre-ortho, wanted corner-ortho\)"):
        fit(tmp_path, MoDL(cascades=1, width=8, fft_origin="corner"), manifest)


@pytest.mark.parametrize(
    ("keywords", "complaint"),
    [
        ({"patterns": ["spiral"]}, "unknown sampling pattern"),
        ({"accelerations": [4.0, 8.0]}, "2 accelerations, 1 center fractions"),
        ({"maps": None}, "need maps"),
        ({"as_stored": True}, "wanted corner"),
        ({"skip_slices": (2, 2)}, "no slices are left"),
        ({"role": "test"}, "no files of this role"),
        ({"skip_slices": (-1, 0)}, "counts"),
    ],
)
def test_arguments_that_make_no_sense(manifest, keywords, complaint):
    with pytest.raises(InputError, match=complaint):
        files(manifest, **keywords)


def test_maps_that_the_file_lacks(manifest):
    with pytest.raises(InputError, match="no sensitivity maps"):
        files(manifest, maps="given")[0]


def test_a_person_in_two_parts_is_named(manifest):
    manifest.write_text(manifest.read_text().replace("p-c", "p-a"))
    with pytest.raises(ManifestError, match=r"own.yaml: subject 'p-a' is in two parts.*train and val"):
        files(manifest)
