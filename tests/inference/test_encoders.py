"""Patch encoders: what they compute, that it does not depend on the batch, and what they refuse."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medseq.errors import BackendError, FormatError, InputError, ShapeError
from medseq.inference.encoders import Preprocess, load_encoder
from tests.inference.onnx_synthetic import convolved, write_network
from tests.io.slide_synthetic import ellipse, stained

PLAIN = Preprocess((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def tiles(rng):
    return rng.integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


def tissue_tiles(rng, n=4, side=128):
    whole = np.ones((side, side), bool)
    return np.stack(
        [stained(rng, ellipse(side, side, side / 2, side / 2, r, r) if r else whole) for r in range(0, 20 * n, 20)]
    )


class TestHedTexture:
    def test_its_numbers_are_finite_and_of_one_scale(self, rng):
        encoder = load_encoder("hed-texture")
        info = encoder.info
        assert (info.name, info.kind, info.dim, info.mpp, info.tile_size) == ("hed-texture", "built-in", 96, 0.5, None)
        extremes = [np.full((1, 64, 64, 3), value, np.uint8) for value in (0, 1, 128, 254, 255)]
        noise = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        for tiles in (*extremes, noise, tissue_tiles(rng, side=64)):
            features = encoder.encode(tiles)
            assert features.shape == (len(tiles), 96)
            assert features.dtype == np.float32
            assert np.isfinite(features).all()
            assert np.abs(features).max() < 25
        assert encoder.encode(noise[:0]).shape == (0, 96)

    def test_the_batch_does_not_matter(self, rng):
        encoder, tiles = load_encoder("hed-texture"), tissue_tiles(rng)
        whole = encoder.encode(tiles)
        np.testing.assert_array_equal(whole, np.concatenate([encoder.encode(tiles[i : i + 1]) for i in range(4)]))
        np.testing.assert_array_equal(whole, load_encoder("hed-texture").encode(tiles))

    def test_turning_or_mirroring_a_tile_changes_nothing(self, rng):
        # Glass lies on the slide as it happens to.
        encoder, tiles = load_encoder("hed-texture"), tissue_tiles(rng)
        features = encoder.encode(tiles)
        for turned in (np.rot90(tiles, axes=(1, 2)), tiles[:, ::-1], tiles.transpose(0, 2, 1, 3)):
            np.testing.assert_allclose(encoder.encode(np.ascontiguousarray(turned)), features, rtol=1e-4, atol=1e-5)

    def test_every_group_of_numbers_sees_what_it_is_for(self, rng):
        encoder = load_encoder("hed-texture")
        pink, violet = (np.full((128, 128, 3), colour, np.uint8) for colour in ((225, 130, 180), (90, 50, 140)))
        flat, nuclei = encoder.encode(np.stack([pink, violet]))
        # Mean haematoxylin; share of dense haematoxylin; share of glass.
        assert nuclei[0] > flat[0] + 0.3
        assert (flat[22], nuclei[22]) == (0, 1)
        assert encoder.encode(np.full((1, 64, 64, 3), 250, np.uint8))[0, 21] == 1
        fine, coarse = (
            # Exactly half of each: the median of a mixture changes sides with a single pixel.
            np.kron(rng.permutation(side * side).reshape(side, side) % 2, np.ones((128 // side, 128 // side)))
            for side in (128, 16)
        )
        a, b = (encoder.encode(np.where(mask[..., None] > 0, pink, violet)[None])[0] for mask in (fine, coarse))
        # The same colours in the same shares: only texture tells them apart.
        np.testing.assert_allclose(a[:5], b[:5], atol=0.1)
        contrast, blocks = 53, 92
        assert a[contrast] > 3 * b[contrast]
        assert b[blocks - 1] > 3 * a[blocks - 1]

    def test_tiles_that_do_not_fit_are_refused(self, tiles):
        encoder = load_encoder("hed-texture")
        for wrong in (tiles[0], tiles.astype(np.float32), tiles[..., :2]):
            with pytest.raises(ShapeError, match="tiles do not fit the encoder"):
                encoder.encode(wrong)
        with pytest.raises(ShapeError, match="tiles are too small"):
            encoder.encode(tiles[:, :16])
        with pytest.raises(
            InputError, match="hed-texture: an option that this encoder does not have .found preprocess"
        ):
            load_encoder("hed-texture", preprocess=PLAIN)


class TestOnnx:
    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    @pytest.mark.parametrize("node", [None, "pooled", "map"])
    def test_any_node_of_any_layout_is_what_the_formula_says(self, tmp_path, rng, tiles, layout, node):
        weights = rng.normal(size=(7, 3, 3, 3))
        path = write_network(tmp_path / "a.onnx", weights, layout=layout)
        encoder = load_encoder(str(path), preprocess=PLAIN, output=node)
        scaled = (tiles / 255 - PLAIN.mean) / PLAIN.sd
        pooled = convolved(scaled, weights).mean(axis=(2, 3))
        # float32 sums of 27 products and 529 places.
        np.testing.assert_allclose(
            encoder.encode(tiles), pooled if node else pooled.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-4
        )
        assert encoder.info.dim == (7 if node else 1)
        assert encoder.info.tile_size is None
        assert encoder.info.settings["output"] == (node or "score")

    def test_values_to_255_in_bgr(self, tmp_path, rng, tiles):
        weights = rng.normal(size=(4, 3, 3, 3))
        path = write_network(tmp_path / "a.onnx", weights, side=48)
        encoder = load_encoder(
            str(path), preprocess=Preprocess((104, 117, 123), (1, 1, 1), 1.0, "bgr"), output="pooled"
        )
        wanted = convolved(tiles[..., ::-1] - np.array([104.0, 117, 123]), weights).mean(axis=(2, 3))
        np.testing.assert_allclose(encoder.encode(tiles), wanted, rtol=1e-3, atol=0.05)
        assert encoder.info.tile_size == 48
        with pytest.raises(ShapeError, match=r"tiles do not fit the encoder .*wanted uint8 \(n, 48, 48, 3\)"):
            encoder.encode(tiles[:, :40, :40])

    def test_the_identity_tells_weights_and_settings_apart(self, tmp_path, rng):
        weights = rng.normal(size=(4, 3, 3, 3))
        a, b = (write_network(tmp_path / f"{name}.onnx", weights + shift) for name, shift in (("a", 0), ("b", 1e-3)))
        infos = [
            load_encoder(str(a)).info,
            load_encoder(str(b)).info,
            load_encoder(str(a), output="pooled").info,
            load_encoder(str(a), preprocess=PLAIN).info,
            load_encoder(str(a), mpp=0.5).info,
        ]
        assert len({info.identity for info in infos}) == 5
        assert load_encoder(str(a)).info.identity == infos[0].identity
        assert infos[0].name == infos[2].name != infos[1].name
        assert infos[0].weights_sha256 != infos[1].weights_sha256

    def test_what_is_no_image_network_is_refused(self, tmp_path, rng):
        (tmp_path / "junk.onnx").write_bytes(b"hello" * 50)
        with pytest.raises(FormatError, match="not a network that onnxruntime runs"):
            load_encoder(str(tmp_path / "junk.onnx"))
        with pytest.raises(InputError, match="no such encoder"):
            load_encoder(str(tmp_path / "none.onnx"))
        weights = rng.normal(size=(2, 3, 3, 3))
        with pytest.raises(FormatError, match="not an image network"):
            load_encoder(str(write_network(tmp_path / "four.onnx", weights, input_shape=["n", 4, 32, 32])))
        with pytest.raises(InputError, match="no such output .found nowhere"):
            load_encoder(str(write_network(tmp_path / "a.onnx", weights)), output="nowhere")
        assert load_encoder(str(tmp_path / "a.onnx")).encode(np.zeros((0, 9, 9, 3), np.uint8)).shape == (0, 1)


class Small(nn.Module):
    """Stands for a network of timm."""

    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.pretrained_cfg = {"input_size": (3, 32, 32)}

    def forward(self, x):
        return self.conv(x).relu().mean(dim=(2, 3))


@pytest.fixture
def timm(monkeypatch):
    """A module in the place of timm, which no test machine has: it would replace torch."""
    fake = types.ModuleType("timm")
    fake.is_model = lambda name: name == "small"

    def create_model(name, pretrained, num_classes, width=6):
        assert (pretrained, num_classes) == (False, 0), "nothing may be downloaded"
        return Small(width)

    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)


class TestTorch:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", "nested.pth"])
    def test_weights_come_from_the_file(self, tmp_path, timm, tiles, suffix):
        network = Small()
        path = tmp_path / f"weights{suffix}"
        state = {**network.state_dict(), "head.weight": torch.ones(2, 6)}
        save_file(state, path) if suffix == ".safetensors" else torch.save(
            {"state_dict": state} if suffix == "nested.pth" else state, path
        )
        encoder = load_encoder("timm:small", weights=path, preprocess=PLAIN, mpp=0.25)
        with torch.no_grad():
            scaled = (tiles / 255 - PLAIN.mean) / PLAIN.sd
            wanted = network(torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32))
        np.testing.assert_allclose(encoder.encode(tiles), wanted.numpy(), rtol=1e-5, atol=1e-6)
        assert (encoder.info.name, encoder.info.dim, encoder.info.mpp) == ("small", 6, 0.25)
        assert len(encoder.info.weights_sha256) == 64

    def test_a_folder_of_hugging_face_says_its_own_preprocessing(self, tmp_path, timm, tiles):
        network = Small(4)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        told = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
        config = {"architecture": "small", "model_args": {"width": 4}, "pretrained_cfg": told}
        (tmp_path / "config.json").write_text(json.dumps(config))
        encoder = load_encoder(str(tmp_path))
        assert encoder.info.settings["mean"] == [0.5, 0.4, 0.3]
        assert encoder.encode(tiles).shape == (5, 4)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(FormatError, match="no encoder in the folder .*model.safetensors"):
            load_encoder(str(tmp_path))

    def test_weights_of_another_network_and_code_are_refused(self, tmp_path, timm):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "proof"), "w"))

        torch.save({"conv.weight": Evil()}, tmp_path / "evil.pt")
        with pytest.raises(FormatError, match="weights that cannot be read .*tensors and nothing else"):
            load_encoder("timm:small", weights=tmp_path / "evil.pt")
        assert not (tmp_path / "proof").exists()
        torch.save(Small(9).state_dict(), tmp_path / "other.pt")
        with pytest.raises(
            FormatError, match="the weights are not this network's .found 0 missing, 2 of another shape"
        ):
            load_encoder("timm:small", weights=tmp_path / "other.pt")
        with pytest.raises(InputError, match="timm knows no such network"):
            load_encoder("timm:large", weights=tmp_path / "other.pt")
        with pytest.raises(InputError, match="an encoder needs its weights"):
            load_encoder("timm:small")

    def test_libraries_that_are_not_there_are_named(self, tmp_path, monkeypatch):
        for name in ("timm", "transformers", "onnxruntime"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(BackendError, match=r"timm is not installed; pip install 'medseq\[encoders\]'"):
            load_encoder("timm:small", weights=tmp_path / "w.pt")
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(BackendError, match="transformers is not installed"):
            load_encoder(str(tmp_path))
        (tmp_path / "a.onnx").write_bytes(b"x")
        with pytest.raises(BackendError, match="onnxruntime is not installed"):
            load_encoder(str(tmp_path / "a.onnx"))


def test_names_that_nobody_has_are_refused(tmp_path):
    for name in ("resnet", str(tmp_path / "JANE_DOE" / "x")):
        with pytest.raises(InputError, match="no such encoder") as caught:
            load_encoder(name)
        assert "JANE" not in str(caught.value)


@pytest.mark.parametrize("words", [{"mean": (0.0,)}, {"sd": (1.0, 0.0, 1.0)}, {"scale": 0.0}])
def test_a_preprocessing_that_divides_by_nothing_is_refused(words):
    with pytest.raises(InputError, match="a preprocessing of three colours is needed"):
        Preprocess(**words)
