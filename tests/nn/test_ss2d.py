"""SS2D and the VSS block against the original's numbers, variant by variant."""

import pytest
import torch
from torch.nn import functional as F

from medseq.errors import BundleError, InputError, ShapeError
from medseq.inference.reference import load
from medseq.nn.rwkv import ChannelLayerNorm
from medseq.nn.ss2d import SS2D, Linear2d, SS2DMixer
from medseq.nn.vss_block import DropPath, VSSBlock
from medseq.ops import cross_merge, cross_scan, selective_scan

BLOCKS = ["v0", "v2_v03", "v05_noz_cf", "v04_oact_onnone", "v052d_noz", "v052dc_noz"]


@pytest.mark.parametrize("name", BLOCKS)
def test_matches_the_original(name, golden, close):
    numbers = golden(f"ss2d_block_{name}")
    module = load("vmamba", numbers.state, numbers.config)
    y = module(numbers.tensors["in.x"])
    close(y, numbers.tensors["out.y"])
    y.backward(numbers.tensors["in.gy"])
    parameters = dict(module.named_parameters())
    gradients = numbers.under("grad.")
    assert gradients
    for key, wanted in gradients.items():
        # Gradients pass through twice the operations.
        close(parameters[key].grad, wanted, 1e-4)


@pytest.mark.parametrize("name", ["v0_nomlp", "v05_noz_mlp4"])
def test_block_matches_the_original(name, golden, close):
    numbers = golden(f"ss2d_vssblock_{name}")
    module = load("vmamba", numbers.state, numbers.config)
    assert isinstance(module, VSSBlock)
    close(module(numbers.tensors["in.x"]), numbers.tensors["out.y"])


@pytest.mark.parametrize(
    "forward_type", ["v05", "v05_noz_oact", "v05_nozact_ondwconv3", "v05_oncnorm", "v05_onsoftmax"]
)
def test_layout_does_not_change_the_numbers(forward_type, draw):
    first = SS2D(6, 3, forward_type=forward_type, channel_first=True)
    last = SS2D(6, 3, forward_type=forward_type, channel_first=False)
    last.load_state_dict(first.state_dict())
    x = draw(2, 6, 5, 7)
    torch.testing.assert_close(first(x), last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("suffix", "keys"),
    [
        ("", ["out_norm.weight", "out_norm.bias"]),
        ("_onnone", []),
        ("_onsigmoid", []),
        ("_onsoftmax", []),
        ("_ondwconv3", ["out_norm.1.weight"]),
        ("_oncnorm", ["out_norm.0.weight", "out_norm.0.bias", "out_norm.2.weight"]),
    ],
)
def test_names_of_parameters_are_the_originals(suffix, keys):
    own = ["x_proj_weight", "A_logs", "Ds", "dt_projs_weight", "dt_projs_bias"]
    rest = ["in_proj.weight", "conv2d.weight", "conv2d.bias", "out_proj.weight"]
    assert list(SS2D(8, forward_type=f"v05{suffix}").state_dict()) == [*own, *keys, *rest]


def test_norms_after_the_scans_do_what_their_names_say(draw):
    def summed(kind, **changes):
        module = SS2D(4, 2, 1.0, d_conv=0, forward_type=f"v05_{kind}_noz", channel_first=True, **changes)
        torch.nn.init.dirac_(module.out_proj.weight.data[..., None])
        module.load_state_dict({**plain.state_dict(), **module.out_norm.state_dict(prefix="out_norm.")})
        return module

    plain = SS2D(4, 2, 1.0, d_conv=0, forward_type="v05_onnone_noz", channel_first=True)
    with torch.no_grad():
        plain.out_proj.weight.copy_(torch.eye(4))
    x = draw(2, 4, 5, 3)
    y = plain(x)
    torch.testing.assert_close(summed("onsigmoid")(x), y.sigmoid())
    torch.testing.assert_close(summed("onsoftmax")(x), y.flatten(2).softmax(-1).view(y.shape))
    conv = summed("ondwconv3")
    torch.testing.assert_close(conv(x), F.conv2d(y, conv.out_norm[1].weight, padding=1, groups=4))
    both = summed("oncnorm")
    normed = ChannelLayerNorm(4)(y)
    torch.testing.assert_close(both(x), F.conv2d(normed, both.out_norm[2].weight, padding=1, groups=4))


@pytest.mark.parametrize("forward_type", ["v051d_noz_onnone", "v052d_noz_onnone", "v05_noz_onnone"])
def test_directions_are_what_the_definition_says(forward_type, draw):
    module = SS2D(3, 2, 1.0, d_conv=0, forward_type=forward_type, channel_first=True)
    x = F.silu(F.conv2d(draw(2, 3, 4, 5), module.in_proj.weight[:, :, None, None]))
    rows = x.flatten(2)
    sequences = {
        "v051d": torch.stack([rows] * 4, 1),
        "v052d": torch.stack([rows, rows, rows.flip(-1), rows.flip(-1)], 1),
        "v05": cross_scan(x).view(2, 4, 3, 20),
    }[forward_type.split("_")[0]]
    parts = torch.einsum("bkcl,kdc->bkdl", sequences, module.x_proj_weight)
    dt, B, C = parts.split([module.dt_rank, 2, 2], 2)
    delta = torch.einsum("bkrl,kcr->bkcl", dt, module.dt_projs_weight)
    y = selective_scan(
        sequences.flatten(1, 2),
        delta.flatten(1, 2),
        -module.A_logs.exp(),
        B,
        C,
        module.Ds,
        delta_bias=module.dt_projs_bias.flatten(),
        delta_softplus=True,
    ).view(2, 4, 3, 20)
    if forward_type.startswith("v05_"):
        merged = cross_merge(y.view(2, 4, 3, 4, 5)).reshape(2, 3, 4, 5)
    else:
        back = [y[:, 0], y[:, 1], y[:, 2], y[:, 3]]
        if forward_type.startswith("v052d"):
            back[2:] = [part.flip(-1) for part in back[2:]]
        merged = sum(back).view(2, 3, 4, 5)
    torch.testing.assert_close(module._scan(x, None), merged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forward_type", ["v05_noz", "v051d", "v052d_noz", "v052dc_noz"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (3, 4)])
def test_any_size_keeps_its_size_and_reaches_every_parameter(forward_type, size, draw):
    module = SS2D(4, 2, forward_type=forward_type, channel_first=True)
    y = module(draw(2, 4, *size))
    assert y.shape == (2, 4, *size)
    y.square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


def test_time_steps_start_between_a_thousandth_and_a_tenth():
    module = SS2DMixer(64)
    steps = F.softplus(module.dt_projs_bias)
    assert module.dt_projs_bias.shape == (4, 64)
    assert 0.000999 < steps.min() < 0.01
    assert 0.02 < steps.max() < 0.1001
    # The starts of the four directions differ; poles and skips do not.
    assert len(steps.flatten().unique()) > 200
    assert torch.equal(SS2D(8, 3).A_logs, torch.tensor([1.0, 2.0, 3.0]).log().expand(64, 3))
    assert torch.equal(module.Ds, torch.ones(256))


def test_a_hole_changes_no_pixel_and_gives_nothing(draw):
    # Without a convolution around it, a hole must be as if the scans had never met it: along one line, cut it out.
    module = SS2D(4, 3, d_conv=0, forward_type="v05", channel_first=True)
    x = draw(1, 4, 1, 9)
    kept = torch.tensor([True, False, True, True, False, False, True, True, False])
    y = module(x, kept[None, None])
    torch.testing.assert_close(y[..., kept], module(x[..., kept]), rtol=1e-4, atol=1e-5)
    assert not y[..., ~kept].any()
    other = torch.where(kept, x, 99.0)
    assert torch.equal(module(other, kept[None, None]), y)


def test_a_full_mask_changes_nothing(draw):
    module, x = SS2DMixer(4, forward_type="v05"), draw(2, 4, 5, 6)
    mask = torch.ones(2, 5, 6, dtype=torch.bool)
    torch.testing.assert_close(module(x, mask), module(x), rtol=1e-4, atol=1e-5)


def test_gradients_pass_holes_unharmed(draw):
    module, x = SS2DMixer(4), draw(1, 4, 3, 4).requires_grad_()
    mask = torch.rand(1, 3, 4) < 0.5
    module(x, mask).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("forward_type", ["v05", "v052dc_noz"])
def test_gradients_are_exact_and_half_precision_works(forward_type, draw):
    module = SS2D(4, 2, forward_type=forward_type, channel_first=True)
    x = draw(1, 4, 2, 3)
    wanted = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    assert found.dtype == torch.bfloat16
    # Eight bits of mantissa, through four matrix products and a norm.
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    assert torch.autograd.gradcheck(module.double(), x.double().requires_grad_())


def test_compiles_into_one_graph(draw):
    module, x = SS2DMixer(4, forward_type="v05"), draw(1, 4, 3, 5)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))


def test_linear2d_loads_a_1x1_convolution_too(draw):
    conv, linear = torch.nn.Conv2d(3, 5, 1), Linear2d(3, 5)
    linear.load_state_dict(conv.state_dict())
    x = draw(2, 3, 4, 4)
    torch.testing.assert_close(linear(x), conv(x))
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        linear.load_state_dict(torch.nn.Conv2d(3, 5, 3).state_dict())


def test_stochastic_depth_keeps_the_mean_and_whole_items():
    drop, x = DropPath(0.25).train(), torch.ones(4000, 2, 2)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y.flatten(1) == y[:, :1, 0]).all()
    # Standard deviation of the mean of 4000 items: 0.009.
    assert abs(y.mean() - 1) < 0.05
    assert drop.eval()(x) is x
    with pytest.raises(InputError, match="rate of stochastic depth \\(found 1"):
        DropPath(1)


def test_recomputing_in_backward_changes_nothing(draw):
    plain = VSSBlock(8, ssm_d_state=2, mlp_ratio=2.0, gmlp=True, channel_first=True)
    again = VSSBlock(8, ssm_d_state=2, mlp_ratio=2.0, gmlp=True, channel_first=True, use_checkpoint=True)
    again.load_state_dict(plain.state_dict())
    gradients = []
    x = draw(2, 8, 4, 4)
    for block in (plain, again):
        block(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_post_norm_and_single_branches(draw):
    x = draw(1, 8, 3, 3)
    scan = VSSBlock(8, ssm_d_state=1, mlp_ratio=0.0, channel_first=True, post_norm=True)
    torch.testing.assert_close(scan(x), x + scan.norm(scan.op(x)))
    mlp = VSSBlock(8, ssm_ratio=0.0, channel_first=True)
    torch.testing.assert_close(mlp(x), x + mlp.mlp(mlp.norm2(x)))
    assert not any(key.startswith("op.") for key in mlp.state_dict())


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"forward_type": "v05_no_z"}, "v05_no_z"),
        ({"forward_type": "v7"}, "v7"),
        ({"forward_type": "v05_onnone_onsigmoid"}, "v05_onnone_onsigmoid"),
    ],
)
def test_unknown_forward_types_are_refused(options, found):
    with pytest.raises(InputError, match=rf"unknown forward_type \(found {found}, wanted v0 \|"):
        SS2D(8, **options)


def test_bad_input_is_named():
    with pytest.raises(
        ShapeError, match=r"SS2D: image does not fit the layer \(found \(1, 3, 4, 4\), wanted \(batch, 8"
    ):
        SS2DMixer(8)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"mask does not fit the image \(found \(1, 4, 3\), wanted \(1, 4, 4\)\)"):
        SS2DMixer(8)(torch.zeros(1, 8, 4, 4), torch.ones(1, 4, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="the cascaded scan knows no holes; use forward_type v05"):
        SS2DMixer(8, forward_type="v052dc")(torch.zeros(1, 8, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="unknown activation \\(found tanh"):
        SS2D(8, act="tanh")


def test_contradicting_and_unknown_keys_are_refused(golden):
    numbers = golden("ss2d_block_v05_noz_cf")
    state, config = numbers.state, numbers.config
    for key, value, complaint in (
        ("d_state", 2, r"'d_state' \(found 2, wanted 1\)"),
        ("ssm_ratio", 2.0, r"'ssm_ratio' \(found 2.0, wanted 1.0\)"),
        ("conv_bias", True, r"'conv_bias' \(found True, wanted False\)"),
        ("dt_rank", 3, r"'dt_rank' \(found 3, wanted 1\)"),
        ("forward_type", "v05", r"'forward_type' \(found v05, wanted no gate, layer norm with weights\)"),
        ("forward_type", "v05_noz_onnone", r"'forward_type' \(found v05_noz_onnone, wanted no gate, layer norm"),
        ("heads", 3, r"unknown configuration key \(found heads"),
    ):
        with pytest.raises(BundleError, match=complaint):
            load("vmamba", state, {**config, key: value})
    with pytest.raises(BundleError, match="surprise"):
        load("vmamba", {**state, "surprise": torch.zeros(1)}, config)
    with pytest.raises(BundleError, match=r"key is missing \(.*wanted A_logs\)"):
        load("vmamba", {key: value for key, value in state.items() if key != "A_logs"}, config)
    bare = {key: value for key, value in state.items() if not key.startswith("out_norm")}
    with pytest.raises(BundleError, match="does not tell the norm after the scans; give forward_type"):
        load("vmamba", bare)


def test_ratios_that_were_rounded_down_are_found():
    for width, ratio in ((96, 1.2), (10, 1.15), (7, 0.5)):
        module = SS2D(width, 1, ratio)
        assert load("vmamba", module.state_dict(), {"ssm_ratio": ratio}).d_inner == int(width * ratio)
        assert load("vmamba", module.state_dict()).d_inner == int(width * ratio)
