"""VMamba: named sizes, feature maps, and checkpoints of old and new code."""

import re

import pytest
import torch
import yaml

from medseq.errors import BundleError, InputError, ShapeError
from medseq.inference.reference import load
from medseq.models.backbone_vmamba import (
    VSSM,
    VSSMFeatures,
    example_inputs,
    tiny,
    vmamba_base,
    vmamba_small,
    vmamba_tiny,
    vmamba_vanilla_tiny,
)
from medseq.nn.vss_patches import PatchMerging

FORWARD_TYPES = {
    "vmamba": "v05_noz",
    "vanilla": "v0",
    "one_direction": "v051d_noz",
    "two_directions": "v052d",
    "cascade": "v052dc_noz",
}
SMALL = {"in_channels": 2, "num_classes": 3, "dims": 8, "depths": (1, 1, 2)}


@pytest.mark.parametrize(
    ("build", "millions"), [(vmamba_tiny, 30), (vmamba_small, 50), (vmamba_base, 89), (vmamba_vanilla_tiny, 23)]
)
def test_named_sizes_have_the_stated_parameters(build, millions):
    with torch.device("meta"):
        model = build()
    # As the authors' table rounds them.
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
    assert model.dims[0] in (96, 128)


def test_options_of_named_sizes_can_be_changed():
    with torch.device("meta"):
        model = vmamba_tiny(in_channels=1, num_classes=2, depths=(1, 1))
    assert model.patch_embed[0].weight.shape[1] == 1
    assert len(model.layers) == 2


def test_feature_maps_halve_and_double():
    model = VSSM(**SMALL).eval()
    maps = model.features(torch.randn(2, 2, 50, 64))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 13, 16), (2, 16, 7, 8), (2, 32, 4, 4)]
    assert model(torch.randn(2, 2, 50, 64)).shape == (2, 3)
    dense = VSSMFeatures((0, 2), **{key: value for key, value in SMALL.items() if key != "num_classes"})
    outputs = dense(torch.randn(2, 2, 50, 64))
    assert [tuple(x.shape) for x in outputs] == [(2, 8, 13, 16), (2, 32, 4, 4)]
    for x in outputs:
        torch.testing.assert_close(x.mean(1), torch.zeros_like(x[:, 0]), rtol=0, atol=1e-5)
    sum(x.square().mean() for x in outputs).backward()
    missing = [name for name, parameter in dense.named_parameters() if parameter.grad is None]
    assert missing == []


def test_patch_merging_takes_squares_apart():
    merge = PatchMerging(1, 4)
    torch.nn.init.eye_(merge.reduction.weight)
    merge.norm = torch.nn.Identity()
    y = merge(torch.arange(9.0).view(1, 1, 3, 3))
    # Columns before rows: the original's order. The odd size is padded with zeros.
    assert y[0, :, 0, 0].tolist() == [0, 3, 1, 4]
    assert y[0, :, 1, 1].tolist() == [8, 0, 0, 0]


@pytest.mark.parametrize("name", FORWARD_TYPES)
def test_checkpoints_load(name):
    model, inputs = tiny()[name].eval(), example_inputs(name)
    again = load("vmamba", model.state_dict(), {"forward_type": FORWARD_TYPES[name]})
    torch.testing.assert_close(again(**inputs), model(**inputs))


def test_old_names_load():
    model = tiny()["vanilla"].eval()
    renames = [
        (r"^patch_embed\.0", "patch_embed.proj"),
        (r"^patch_embed\.2", "patch_embed.norm"),
        (r"blocks\.(\d+)\.norm", r"blocks.\1.ln_1"),
        (r"blocks\.(\d+)\.op", r"blocks.\1.self_attention"),
        (r"^classifier\.", ""),
    ]
    state = model.state_dict()
    for pattern, name in renames:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    assert {"head.weight", "norm.bias", "layers.0.blocks.0.self_attention.Ds"} <= set(state)
    image = torch.randn(1, 1, 20, 24)
    torch.testing.assert_close(load("vmamba", state)(image), model(image))


def test_backbones_with_output_norms_load():
    model = VSSMFeatures((1, 2), **{key: value for key, value in SMALL.items() if key != "num_classes"}).eval()
    again = load("vmamba", model.state_dict(), {"out_indices": (1, 2), "num_classes": 1000, "pretrained": None})
    image = torch.randn(1, 2, 32, 32)
    for found, wanted in zip(again(image), model(image), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_originals_whole_configuration_is_accepted():
    model = VSSM(**SMALL, ssm_ratio=2.0).eval()
    words = """{patch_size: 4, in_chans: 2, num_classes: 3, depths: [1, 1, 2], dims: 8, drop_path_rate: 0.3,
        ssm_d_state: 1, ssm_ratio: 2.0, ssm_dt_rank: auto, ssm_act_layer: silu, ssm_conv: 3, ssm_conv_bias: false,
        ssm_drop_rate: 0.0, ssm_init: v0, forward_type: v05_noz, mlp_ratio: 4.0, mlp_act_layer: gelu,
        mlp_drop_rate: 0.0, gmlp: false, patch_norm: true, norm_layer: ln2d, downsample_version: v3,
        patchembed_version: v2, use_checkpoint: false, posembed: false, imgsize: 224}"""
    config = yaml.safe_load(words)
    image = torch.randn(1, 2, 32, 32)
    torch.testing.assert_close(load("vmamba", model.state_dict(), config)(image), model(image))


def test_activations_come_from_the_configuration():
    model = VSSM(**SMALL, ssm_act="gelu", mlp_act="relu").eval()
    image = torch.randn(1, 2, 32, 32)
    again = load("vmamba", model.state_dict(), {"ssm_act_layer": "gelu", "mlp_act_layer": "ReLU"})
    torch.testing.assert_close(again(image), model(image))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("depths", [1, 1, 1], r"'depths' \(found \[1, 1, 1\], wanted \[1, 1, 2\]\)"),
        ("dims", 16, r"'dims' \(found \[16, 32, 64\], wanted \[8, 16, 32\]\)"),
        ("patchembed_version", "v1", r"'patchembed_version' \(found v1, wanted v2\)"),
        ("downsample_version", "v2", r"'downsample_version' \(found v2, wanted v3\)"),
        ("ssm_d_state", 16, r"'ssm_d_state' \(found 16, wanted 1\)"),
        ("mlp_ratio", 0.0, r"'mlp_ratio' \(found 0.0, wanted 4.0\)"),
        ("posembed", True, "position embeddings are not supported"),
        ("forward_type", "v05", "'forward_type'"),
        ("hidden_dim", 8, r"unknown configuration key \(found hidden_dim"),
    ],
)
def test_contradictions_are_refused(key, value, complaint):
    with pytest.raises(BundleError, match=complaint):
        load("vmamba", VSSM(**SMALL).state_dict(), {key: value})


def test_unknown_and_missing_weights_are_refused():
    state = VSSM(**SMALL).state_dict()
    with pytest.raises(BundleError, match="pos_embed"):
        load("vmamba", {**state, "pos_embed": torch.zeros(1)})
    with pytest.raises(BundleError, match=r"layers\.1\.blocks\.0\.mlp\.fc1\.bias"):
        load("vmamba", {key: value for key, value in state.items() if key != "layers.1.blocks.0.mlp.fc1.bias"})
    with pytest.raises(BundleError, match="not a VMamba state dict"):
        load("vmamba", {"weight": torch.zeros(1)})


def test_bad_input_is_named():
    model = VSSM(**SMALL)
    with pytest.raises(ShapeError, match=r"found \(1, 3, 32, 32\), wanted \(batch, 2, row, col\) of at least 4 x 4"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ShapeError, match=r"found \(1, 2, 3, 32\)"):
        model(torch.zeros(1, 2, 3, 32))
    with pytest.raises(InputError, match="as many dims as depths"):
        VSSM(depths=(1, 1), dims=(8,))
    with pytest.raises(InputError, match="downsample_version \\(found v4"):
        VSSM(depths=(1, 1), dims=8, downsample_version="v4")
    with pytest.raises(InputError, match=r"patch embedding \(found \('v2', 3\)"):
        VSSM(depths=(1,), dims=8, patch_size=3)
