"""One U-shape, three mixers: one graph for compilers, and none of our operators in what leaves torch."""

import pytest
import torch
from torch import nn

from medseq.models.restore_rwkv import RestoreRWKV, restore_rwkv_light
from medseq.models.restore_vmamba_unet import RestoreVMambaUNet, restore_vmamba_unet_light
from medseq.nn.depthwise import DepthwiseMixer
from medseq.nn.rwkv import SpatialMix
from medseq.nn.ss2d import SS2DMixer
from medseq.ops import bi_wkv, cross_selective_scan
from medseq.ops.cross_scan import exportable as cross_export
from medseq.ops.wkv import exportable as wkv_export

MIXERS = {"ReWKV": SpatialMix, "SS2D": SS2DMixer, "depthwise": DepthwiseMixer}


def small(name):
    return restore_rwkv_light(dim=4, num_blocks=(1, 1, 1, 1), init="paper", mixer=MIXERS[name]).eval()


def skeleton(model):
    return {key: value.shape for key, value in model.state_dict().items() if ".att." not in key}


def test_the_mixer_is_all_that_differs():
    models = {name: small(name) for name in MIXERS}
    models["VMamba"] = restore_vmamba_unet_light(dim=4, num_blocks=(1, 1, 1, 1), init="paper")
    assert len({tuple(skeleton(model).items()) for model in models.values()}) == 1
    for name, kind in MIXERS.items():
        assert sum(isinstance(module, kind) for module in models[name].modules()) == 7
    assert isinstance(models["VMamba"].latent[0].att, SS2DMixer)


def test_light_models_have_about_the_same_size():
    sizes = {
        "ReWKV": restore_rwkv_light(),
        "SS2D": restore_vmamba_unet_light(),
        "depthwise": restore_rwkv_light(mixer=DepthwiseMixer),
    }
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in sizes.items()}
    assert max(counts.values()) < 1.2e6
    assert min(counts.values()) > 0.85 * max(counts.values()), counts


def test_a_stable_start_changes_nothing(seed):
    model = restore_vmamba_unet_light(dim=4, num_blocks=(1, 1, 1, 1))
    image = torch.randn(1, 1, 9, 12, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(model(image), image)
    assert isinstance(model, RestoreVMambaUNet)
    assert isinstance(model, RestoreRWKV)


@pytest.mark.parametrize("name", ["ReWKV", "SS2D"])
def test_compilers_get_one_graph(name, seed):
    model, image = small(name), torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        # The same operations in the same order.
        torch.testing.assert_close(compiled(image), model(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ReWKV", "SS2D"])
def test_an_exported_graph_knows_no_operator_of_ours(name, seed):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = MIXERS[name](4)

        def forward(self, x):
            return self.mixer(x)

    model, image = Mixer().eval(), torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        program = torch.export.export(model, (image,), strict=False)
        assert not [node.target for node in program.graph.nodes if "medseq" in str(node.target)]
        # Sums in another order: float32 rounding.
        torch.testing.assert_close(program.module()(image), model(image), rtol=1e-4, atol=1e-5)


def test_exportable_operators_are_the_operators(seed):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    w, u, k, v = 0.1 * randn(3), randn(3), 3 * randn(2, 37, 3), randn(2, 37, 3)
    # float64: what is left is the order of the sums.
    torch.testing.assert_close(wkv_export.forward(w, u, k, v), bi_wkv(w, u, k, v), rtol=1e-9, atol=1e-9)
    x, delta, A = randn(2, 3, 5, 7), randn(2, 4, 3, 5, 7), -randn(12, 2).exp()
    B, C, D, bias = randn(2, 4, 2, 5, 7), randn(2, 4, 2, 5, 7), randn(12), randn(12)
    for directions in ("cross", "forward", "bidirectional"):
        wanted = cross_selective_scan(x, delta, A, B, C, D, bias, delta_softplus=True, directions=directions)
        found = cross_export.forward(x, delta, A, B, C, D, bias, True, directions)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
