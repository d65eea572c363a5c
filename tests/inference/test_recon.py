"""The reconstruction predictor: physics that must hold whatever the network, and networks of every convention."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseq.errors import InputError
from medseq.inference.recon_net import ask_network
from medseq.inference.recon_slice import prepare_slice, reconstruct_slice
from medseq.io.kspace import KSpaceSlice
from medseq.models import recon_cirim, recon_modl, recon_recurrent_varnet, recon_unet, recon_varnet
from medseq.ops.coils import sens_expand, sens_reduce

CPU = torch.device("cpu")


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def scene(rng, rows=36, cols=40, coils=4, step=2):
    """A smooth disc seen by smooth coils: image, maps (unit sum of squares), centred unitary k-space, mask."""
    y, x = np.mgrid[:rows, :cols]
    y, x = (y - rows // 2) / rows, (x - cols // 2) / cols
    image = (x**2 + y**2 < 0.13) * (1 + 0.3 * np.cos(8 * x + rng.uniform(0, 6))) * np.exp(1j * (x + rng.uniform(0, 6)))
    angle = np.arange(coils) / coils * 2 * np.pi + rng.uniform(0, 6)
    maps = np.exp(1j * angle)[:, None, None] / (
        1.2 + x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None]
    )
    maps = (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)
    kspace = sens_expand(torch.from_numpy(image.astype(np.complex64))[None], torch.from_numpy(maps)[None])[0].numpy()
    mask = np.zeros((1, 1, cols), bool)
    mask[..., ::step], mask[..., cols // 2 - 6 : cols // 2 + 6] = True, True
    return SimpleNamespace(image=image.astype(np.complex64), maps=maps, kspace=kspace, mask=mask)


def part(scan, *, full=False, maps=True, **changes):
    mask = np.ones_like(scan.mask) if full else scan.mask
    return KSpaceSlice(
        **({"kspace": scan.kspace * mask, "mask": mask, "sens_maps": scan.maps if maps else None} | changes)
    )


def net(make=recon_modl.tiny, name="convolutions"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()[name].eval()
        for parameter in model.parameters():
            # Last layers start at zero: a network that changes nothing would hide mistakes.
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        return model


def test_fully_sampled_data_come_back_as_they_are(rng):
    scan = scene(rng)
    result = reconstruct_slice(net(), prepare_slice(part(scan, full=True), "auto", "ortho", CPU))
    assert result.complete
    assert result.metrics["data_residual"] < 1e-5, "the same linear combination, in float32"
    np.testing.assert_allclose(result.image, scan.image, atol=2e-5 * np.abs(scan.image).max())


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e7])
def test_the_unit_of_the_data_is_the_unit_of_the_image(rng, factor):
    scan, model = scene(rng), net()
    once = reconstruct_slice(model, prepare_slice(part(scan), "auto", "ortho", CPU)).image
    scan.kspace = (scan.kspace * factor).astype(np.complex64)
    again = reconstruct_slice(model, prepare_slice(part(scan), "auto", "ortho", CPU)).image
    # Noise is estimated and conjugate gradients run at another scale: float32 rounding, a few operations deep.
    np.testing.assert_allclose(again / factor, once, atol=1e-4 * np.abs(once).max())


def test_the_norm_of_the_file_does_not_matter(rng):
    scan, model = scene(rng), net()
    once = reconstruct_slice(model, prepare_slice(part(scan), "auto", "ortho", CPU))
    scan.kspace = scan.kspace * np.float32(np.sqrt(36 * 40))
    again = reconstruct_slice(model, prepare_slice(part(scan), "auto", "backward", CPU))
    np.testing.assert_allclose(again.image, once.image, atol=1e-4 * np.abs(once.image).max())
    assert again.metrics["data_residual"] == pytest.approx(once.metrics["data_residual"], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (recon_cirim.tiny, "indrnn"),
        (recon_cirim.tiny, "gru"),
        (recon_cirim.tiny, "explicit"),
        (recon_cirim.tiny, "sens_net"),
        (recon_recurrent_varnet.tiny, "sense"),
        (recon_recurrent_varnet.tiny, "sens_net"),
        (recon_varnet.tiny, "given"),
        (recon_varnet.tiny, "sens_net"),
        (recon_unet.tiny, "complex"),
        (recon_unet.tiny, "rss"),
    ],
)
def test_other_networks_run_and_their_change_is_reported(rng, make, name):
    scan, model = scene(rng), net(make, name)
    result = reconstruct_slice(model, prepare_slice(part(scan, maps=False), "auto", "ortho", CPU))
    assert result.image.shape == scan.image.shape
    assert result.image.dtype == np.complex64
    assert "change_when_full" not in result.metrics
    assert np.isfinite(list(result.metrics.values())).all()
    full = reconstruct_slice(model, prepare_slice(part(scan, full=True), "auto", "ortho", CPU))
    assert full.complete
    assert full.metrics["change_when_full"] > 0


@pytest.mark.parametrize("shape", [(36, 40), (35, 39)])
@pytest.mark.parametrize("module", [recon_cirim, recon_varnet, recon_recurrent_varnet, recon_modl])
def test_a_network_of_another_convention_gives_the_same_image(rng, module, shape):
    classes = {
        recon_cirim: ("CIRIM", {"num_cascades": 2, "time_steps": 2, "channels": (6, 6)}),
        recon_varnet: ("VarNet", {"num_cascades": 2, "channels": 4, "pools": 2}),
        recon_recurrent_varnet: ("RecurrentVarNet", {"num_steps": 2, "channels": 6, "num_layers": 2}),
        recon_modl: ("MoDL", {"cascades": 2, "width": 8, "memory": 2, "iterations": 3}),
    }
    name, sizes = classes[module]
    if name == "RecurrentVarNet":
        sizes |= {"initializer": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plain = getattr(module, name)(**sizes).eval()
    corner = getattr(module, name)(**sizes, fft_origin="corner").eval()
    corner.load_state_dict(plain.state_dict())
    scan = scene(rng, *shape)
    prepared = prepare_slice(part(scan), "auto", "ortho", CPU)
    with torch.inference_mode():
        answers = [
            ask_network(model, prepared.kspace, prepared.mask, prepared.maps, own_maps=True, options={})
            for model in (plain, corner)
        ]
    if name != "RecurrentVarNet":
        # The networks see the same whole image; what differs is the order of sums in the FFT. RecurrentVarNet refines
        # k-space samples in the order in which they are stored.
        scale = answers[0][0].abs().max()
        torch.testing.assert_close(answers[1][0], answers[0][0], atol=2e-4 * float(scale), rtol=0)
    seen = torch.where(prepared.mask, answers[1][1] - prepared.kspace, 0).norm() / prepared.kspace.norm()
    assert seen < 1.5, "k-space comes back in the file's order"


def test_a_backward_network_of_one_step_is_consistent(rng):
    scan = scene(rng)
    prepared = prepare_slice(part(scan), "auto", "ortho", CPU)
    sizes = {"cascades": 2, "width": 8, "memory": 2, "iterations": 6, "fft_origin": "corner", "fft_norm": "backward"}
    model = recon_modl.MoDL(**sizes).eval()
    result = reconstruct_slice(model, prepared)
    # The untrained network proposes nothing: what remains is SENSE, which explains noiseless data but for its prior.
    assert result.metrics["data_residual"] < 0.2
    assert np.linalg.norm(result.image - scan.image) < 0.3 * np.linalg.norm(scan.image)


def test_given_maps_are_preferred_and_can_be_asked_for(rng):
    scan = scene(rng)
    assert prepare_slice(part(scan), "auto", "ortho", CPU).maps_from == "given"
    assert prepare_slice(part(scan), "espirit", "ortho", CPU).maps_from == "espirit"
    assert prepare_slice(part(scan), "estimate", "ortho", CPU).maps_from == "estimate"
    with pytest.raises(InputError, match=r"holds no sensitivity maps.*--sens-maps.*--sens espirit"):
        prepare_slice(part(scan, maps=False), "given", "ortho", CPU)


def test_estimated_maps_give_nearly_the_image_of_the_true_ones(rng):
    scan = scene(rng)
    images = [
        np.abs(reconstruct_slice(net(), prepare_slice(part(scan, full=True), sens, "ortho", CPU)).image)
        for sens in ("given", "espirit", "estimate")
    ]
    for image in images[1:]:
        # Low-resolution maps of an object with sharp edges; the combination is exact where they are.
        assert np.linalg.norm(image - images[0]) < 0.1 * np.linalg.norm(images[0])


def test_one_coil_needs_no_maps(rng):
    scan = scene(rng, coils=1)
    prepared = prepare_slice(part(scan, maps=False), "auto", "ortho", CPU)
    assert prepared.maps_from == "one coil"
    whole = prepare_slice(part(scan, full=True, maps=False), "auto", "ortho", CPU)
    expected = sens_reduce(torch.from_numpy(scan.kspace)[None], torch.ones(1, 1, 36, 40, dtype=torch.complex64))[0]
    np.testing.assert_allclose(reconstruct_slice(net(), whole).image, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(33, 40), (36, 37), (35, 37)])
def test_odd_sizes(rng, shape):
    scan = scene(rng, *shape)
    result = reconstruct_slice(net(), prepare_slice(part(scan, maps=False), "auto", "ortho", CPU))
    assert result.image.shape == shape
    assert np.linalg.norm(np.abs(result.image) - np.abs(scan.image)) < np.linalg.norm(scan.image)


def test_a_slice_of_640_by_368(rng):
    scan = scene(rng, 640, 368, coils=2)
    result = reconstruct_slice(net(), prepare_slice(part(scan), "auto", "ortho", CPU))
    assert result.image.shape == (640, 368)
    assert result.metrics["acceleration"] == pytest.approx(368 / scan.mask.sum())


def test_a_centre_that_was_not_sampled_is_named(rng):
    scan = scene(rng)
    mask = scan.mask.copy()
    mask[..., 10:30] = False
    with pytest.raises(InputError, match="centre"):
        prepare_slice(part(scan, maps=False, mask=mask, kspace=scan.kspace * mask), "auto", "ortho", CPU)


def test_samples_outside_the_mask_are_not_used(rng):
    scan, model = scene(rng), net()
    clean = reconstruct_slice(model, prepare_slice(part(scan), "auto", "ortho", CPU)).image
    dirty = part(scan, kspace=scan.kspace)
    np.testing.assert_array_equal(reconstruct_slice(model, prepare_slice(dirty, "auto", "ortho", CPU)).image, clean)


def test_a_coil_of_zeros_changes_nothing(rng):
    scan = scene(rng)
    silent = np.concatenate([scan.kspace, np.zeros_like(scan.kspace[:1])])
    before = prepare_slice(part(scan, full=True, maps=False), "auto", "ortho", CPU)
    mask = np.ones_like(scan.mask)
    after = prepare_slice(KSpaceSlice(silent, mask), "auto", "ortho", CPU)
    images = [np.abs(reconstruct_slice(net(), one).image) for one in (before, after)]
    # The calibration matrix has another size, so that its singular vectors differ by rounding and a threshold.
    assert np.linalg.norm(images[1] - images[0]) < 0.02 * np.linalg.norm(images[0])


def test_a_network_that_fails_is_told(rng):
    class Broken(torch.nn.Module):
        def forward(self, kspace, mask, maps):
            return SimpleNamespace(image=torch.full(kspace.shape[:1] + kspace.shape[2:], float("nan")), kspace=None)

    from medseq.errors import BackendError

    with pytest.raises(BackendError, match="not finite"):
        reconstruct_slice(Broken(), prepare_slice(part(scene(rng)), "auto", "ortho", CPU))


def test_bundles_name_one_rule_for_the_scale(tmp_path):
    from medseq.errors import BundleError
    from medseq.inference.recon import ReconPredictor
    from tests.inference.test_recon_folder import SIZES, save

    class_path = "medseq.models.recon_modl.MoDL"
    rules = {
        "none": [],
        "one": ["medseq.data.recon_scale.CoilImageMax"],
        "two": ["medseq.data.recon_scale.CoilImageMax"] * 2,
        "image": ["medseq.data.transforms.RobustScale"],
    }
    for name, chain in rules.items():
        preprocess = [{"class_path": rule} for rule in chain]
        model = recon_modl.MoDL(**SIZES)
        bundle = save(tmp_path / name, model, class_path, SIZES, preprocess=preprocess)
        if name in ("two", "image"):
            with pytest.raises(BundleError, match="preprocess does not fit raw data.*at most one rule"):
                ReconPredictor(bundle)
        else:
            ReconPredictor(bundle)
