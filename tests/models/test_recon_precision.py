"""Every reconstruction network under mixed precision, and with its cascades recomputed for the gradient."""

import importlib
import pkgutil

import pytest
import torch

import medseq.models
from medseq.models.recon_cirim import CIRIM
from medseq.models.recon_modl import MoDL
from medseq.models.recon_recurrent_varnet import RecurrentVarNet
from medseq.models.recon_varnet import VarNet
from medseq.nn.recon import as_complex
from medseq.nn.unet import NormUNet

MODULES = {
    info.name: importlib.import_module(f"medseq.models.{info.name}")
    for info in pkgutil.iter_modules(medseq.models.__path__)
    if info.name.startswith("recon_")
}
NETWORKS = [
    (module, name) for module, found in MODULES.items() for name, net in found.tiny().items() if list(net.parameters())
]
UNROLLED = {
    "cirim": lambda **k: CIRIM(num_cascades=3, time_steps=4, channels=(8, 8), **k),
    "cirim explicit": lambda **k: CIRIM(
        num_cascades=3, time_steps=4, channels=(8, 8), hidden="carry", data_consistency="explicit", **k
    ),
    "recurrent varnet": lambda **k: RecurrentVarNet(num_steps=4, channels=8, num_layers=2, **k),
    "varnet": lambda **k: VarNet(num_cascades=3, channels=4, pools=2, **k),
    "modl": lambda **k: MoDL(cascades=3, width=8, memory=2, iterations=3, **k),
}


class Transformed:
    """Stands for `torch.fft` functions and remembers what they were given."""

    def __init__(self, monkeypatch):
        self.seen = []
        for name in ("fft2", "ifft2", "fftn", "ifftn"):
            monkeypatch.setattr(torch.fft, name, self.watch(getattr(torch.fft, name)))

    def watch(self, transform):
        def wrapped(x, *args, **keywords):
            self.seen.append(x.dtype)
            return transform(x, *args, **keywords)

        return wrapped


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("module", "name"), NETWORKS)
def test_mixed_precision_leaves_the_physics_alone(module, name, precision, monkeypatch):
    torch.manual_seed(5)
    net, inputs = MODULES[module].tiny()[name], MODULES[module].example_inputs(name)
    wanted = net(**inputs).image.detach()
    transformed = Transformed(monkeypatch)
    with torch.autocast("cpu", precision):
        image = net(**inputs).image
    assert transformed.seen
    assert set(transformed.seen) == {torch.complex64}
    assert image.dtype == wanted.dtype
    # Eight bits of mantissa are 0.4 %, three more with float16; learned maps pass through many layers.
    worst = 0.1 if precision == torch.bfloat16 else 0.0125
    assert float((image.detach() - wanted).abs().max() / wanted.abs().max()) < worst
    image.abs().mean().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_complex_images_have_single_precision_at_least(precision):
    assert as_complex(torch.ones(1, 2, 3, 3, dtype=precision)).dtype == torch.complex64
    assert as_complex(torch.ones(1, 2, 3, 3, dtype=torch.float64)).dtype == torch.complex128
    with torch.autocast("cpu", precision):
        assert NormUNet(4, 2, normalise=False)(torch.ones(1, 8, 8, dtype=torch.complex64)).dtype == torch.complex64


def gradients(make, inputs, **keywords):
    """Gradients by name, and the bytes that were kept for them."""
    torch.manual_seed(3)
    net, kept = make(**keywords), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = net(**inputs)
        total = sum(step.abs().mean() for cascade in out.intermediates for step in cascade)
    total.backward()
    return {key: p.grad for key, p in net.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("name", UNROLLED)
def test_recomputed_cascades_give_the_same_gradients_and_keep_less(name, seed):
    torch.manual_seed(seed)
    mask = torch.rand(1, 1, 1, 40) < 0.4
    mask[..., 18:23] = True
    maps = torch.randn(1, 2, 36, 40, dtype=torch.complex64)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    kspace = torch.randn(1, 2, 36, 40, dtype=torch.complex64) * mask
    inputs = {"masked_kspace": kspace, "mask": mask, "sens_maps": maps}
    wanted, plain = gradients(UNROLLED[name], inputs)
    found, recomputed = gradients(UNROLLED[name], inputs, checkpoint_cascades=True)
    for key, gradient in wanted.items():
        if gradient is None:
            assert found[key] is None, key
        else:
            # The same operations in the same order.
            torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-7, msg=key)
    assert recomputed < 0.6 * plain
