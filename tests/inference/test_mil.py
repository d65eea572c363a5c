"""Bags and slides to scores and heat maps."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from medseq.errors import BundleError, InputError, ShapeError
from medseq.inference.bundle import save_bundle
from medseq.inference.discover_mil import open_mil_item
from medseq.inference.mil import MILPredictor
from medseq.inference.mil_item import MILItem
from medseq.inference.predictor import Stopped
from medseq.io.features import Bag
from medseq.models.mil_fitted import FittedMIL

DIM, SIZE = 12, 256
HEAD = {"in_dim": DIM, "d_model": 16, "attention_dim": 8}
MAMBA = {"class_path": "medseq.models.mil_mamba.MambaMIL", "init_args": HEAD}


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


class Folder:
    """A sink that is a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, role, suffix):
        self.path.mkdir(exist_ok=True)
        return self.path / f"{role}{suffix}"

    def content(self):
        return sorted(path.name for path in self.path.iterdir())


def make_bundle(folder, model=MAMBA, *, fitted=True, encoder=None, mpp=None, **output):
    """A model with random weights; a fitted one knows training bags of standard normal features."""
    torch.manual_seed(0)
    spec = model
    if fitted:
        spec = {
            "class_path": "medseq.models.mil_fitted.FittedMIL",
            "init_args": {"net": model, "feature_dim": DIM, "embedding_dim": 16, "rank": 4},
        }
    config = {
        "name": folder.name,
        "version": "1.0",
        "task": "mil",
        "model": spec,
        "input": {"kind": "bag", "feature_dim": DIM, "encoder": encoder, "mpp": mpp},
        "output": {"kind": "scores", "classes": ["benign", "malignant"], **output},
    }
    from medseq.inference.bundle_classes import build_class
    from medseq.inference.bundle_schema import ClassSpec

    net = build_class(ClassSpec(**spec), where="test").eval()
    if isinstance(net, FittedMIL):
        bags = [torch.randn(40, DIM) for _ in range(30)]
        net.fit_features(bags)
        with torch.no_grad():
            embeddings = np.stack([net(bag).embedding[0].numpy() for bag in bags])
        net.fit_embeddings(embeddings[:20], embeddings[20:])
    return save_bundle(folder, config, net.state_dict(), metadata={"intended_use": "tests"}, card="# A test\n")


def bag(rng, n=30, width=DIM, places=True, scale=1.0, **facts):
    cells = rng.choice(400, n, replace=False)
    coords = (np.stack([cells % 20, cells // 20], 1) * SIZE).astype(np.int64) if places else None
    features = (scale * rng.standard_normal((n, width))).astype(np.float32)
    return Bag(features, "slide", "patient", coords, SIZE if places else None, **facts)


def item(content, tmp_path, slide=None):
    return MILItem("item", content, slide, tmp_path / "bags")


def test_scores_are_those_of_the_model(rng, tmp_path):
    bundle = make_bundle(tmp_path / "b", temperature=2.0, threshold=0.25)
    content = bag(rng)
    prediction = MILPredictor(bundle).predict(item(content, tmp_path), Folder(tmp_path / "out"))
    with torch.no_grad():
        out = bundle.build_model()(torch.from_numpy(content.features))
    p = (out.logits[0] / 2).softmax(0).numpy()
    said = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert said["probabilities"] == pytest.approx(p, abs=1e-6)
    assert said["call"] == ("malignant" if p[1] >= 0.25 else "benign")
    assert said["notice"].startswith("Research use only")
    assert prediction.metrics["probability_1"] == pytest.approx(p[1], abs=1e-6)
    with h5py.File(tmp_path / "out" / "attention.h5") as file:
        assert np.allclose(file["attention"][()], out.attention[0].numpy(), atol=1e-7)
        assert (file["coords"][()] == content.coords).all()
        order = np.argsort(file["attention_percentile"][()])
        assert (np.diff(out.attention[0].numpy()[order]) >= 0).all()
    files = {path.name for output in prediction.outputs for path in output.paths}
    assert files == set(Folder(tmp_path / "out").content())
    assert {"overlay.ome.tiff", "overlay.geojson", "overlay.png"} <= files


def test_a_long_bag_is_streamed_and_gives_the_same(rng, tmp_path):
    bundle, content = make_bundle(tmp_path / "b"), bag(rng, 300)
    whole = MILPredictor(bundle).predict(item(content, tmp_path), Folder(tmp_path / "a"))
    parts = MILPredictor(bundle, chunk=64).predict(item(content, tmp_path), Folder(tmp_path / "c"))
    # float32 sums in another order.
    assert parts.metrics["probability_1"] == pytest.approx(whole.metrics["probability_1"], abs=1e-5)
    assert parts.metrics["distance"] == pytest.approx(whole.metrics["distance"], rel=1e-3)


def test_a_bag_unlike_the_training_bags_is_flagged(rng, tmp_path):
    # Without a layer norm, whose embeddings have one length whatever the features have.
    model = {"class_path": "medseq.models.mil_abmil.ABMIL", "init_args": HEAD}
    predictor = MILPredictor(make_bundle(tmp_path / "b", model))
    near = predictor.predict(item(bag(rng, 40), tmp_path), Folder(tmp_path / "near"))
    far = predictor.predict(item(bag(rng, 40, scale=30.0), tmp_path), Folder(tmp_path / "far"))
    assert "out-of-distribution" in {flag.code for flag in far.flags}
    assert far.metrics["distance"] > near.metrics["distance"]


def test_survival_tells_risk_and_curve_and_calls_nothing(rng, tmp_path):
    model = {**MAMBA, "init_args": {**HEAD, "n_classes": 4}}
    names = ["0-1 y", "1-2 y", "2-3 y", "3-5 y"]
    bundle = make_bundle(tmp_path / "b", model, fitted=False, target="survival", classes=names)
    MILPredictor(bundle).predict(item(bag(rng), tmp_path), Folder(tmp_path / "out"))
    said = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert said["call"] is None
    assert said["classes"] == [*names, "later"]
    assert sum(said["probabilities"]) == pytest.approx(1, abs=1e-6)
    assert said["risk"] == pytest.approx(-sum(said["survival"]), abs=1e-5)


@pytest.mark.parametrize("attribution", ["gradient", "occlusion"])
def test_other_attributions_are_written_beside_the_attention(attribution, rng, tmp_path):
    predictor = MILPredictor(make_bundle(tmp_path / "b"), attribution=attribution)
    predictor.predict(item(bag(rng), tmp_path), Folder(tmp_path / "out"))
    with h5py.File(tmp_path / "out" / "attention.h5") as file:
        assert {"attention", attribution, f"{attribution}_percentile"} <= set(file)
    first = json.loads((tmp_path / "out" / "overlay.geojson").read_text())["features"][0]
    assert attribution in first["properties"]["measurements"]


def test_without_places_there_is_no_map_and_it_is_said(rng, tmp_path):
    predictor = MILPredictor(make_bundle(tmp_path / "b"))
    prediction = predictor.predict(item(bag(rng, places=False), tmp_path), Folder(tmp_path / "out"))
    assert Folder(tmp_path / "out").content() == ["attention.h5", "scores.json"]
    assert "no-coordinates" in {flag.code for flag in prediction.flags}


def test_one_patch_is_scored_and_remarked_on(rng, tmp_path):
    prediction = MILPredictor(make_bundle(tmp_path / "b")).predict(
        item(bag(rng, 1), tmp_path), Folder(tmp_path / "out")
    )
    assert "few-patches" in {flag.code for flag in prediction.flags}


@pytest.mark.parametrize(
    ("facts", "error", "message"),
    [
        ({"width": 7}, ShapeError, "7 of encoder 'theirs'"),
        ({}, InputError, "another encoder"),
    ],
)
def test_features_of_another_encoder_are_refused(facts, error, message, rng, tmp_path):
    predictor = MILPredictor(make_bundle(tmp_path / "b", encoder="ours"))
    with pytest.raises(error, match=message):
        predictor.predict(item(bag(rng, encoder="theirs", **facts), tmp_path), Folder(tmp_path / "out"))


def test_features_that_do_not_say_where_they_are_from_are_remarked_on(rng, tmp_path):
    predictor = MILPredictor(make_bundle(tmp_path / "b", encoder="ours", mpp=0.5))
    flags = predictor.predict(item(bag(rng, mpp=1.0), tmp_path), Folder(tmp_path / "out")).flags
    assert {"encoder-unknown", "resolution"} <= {flag.code for flag in flags}


def test_a_model_of_the_whole_bag_says_when_it_is_too_large(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("medseq.inference.mil._MAX_WHOLE_BYTES", 1000)
    model = {
        "class_path": "medseq.models.mil_transmil.TransMIL",
        "init_args": {"in_dim": DIM, "d_model": 16, "heads": 2},
    }
    predictor = MILPredictor(make_bundle(tmp_path / "b", model, fitted=False), chunk=8)
    with pytest.raises(InputError, match="too large for a model"):
        predictor.predict(item(bag(rng), tmp_path), Folder(tmp_path / "out"))


def test_asked_to_stop_it_stops(rng, tmp_path):
    predictor = MILPredictor(make_bundle(tmp_path / "b"), chunk=8)
    with pytest.raises(Stopped):
        predictor.predict(item(bag(rng), tmp_path), Folder(tmp_path / "out"), should_stop=lambda: True)


@pytest.mark.parametrize(
    ("words", "message"), [({"attribution": "shap"}, "unknown attribution"), ({"top": 0}, "out of range")]
)
def test_words_out_of_range_are_refused(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        MILPredictor(make_bundle(tmp_path / "b"), **words)


def test_a_bundle_must_say_what_it_takes(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    config = bundle.config.model_copy(update={"input": bundle.config.input.model_copy(update={"feature_dim": None})})
    object.__setattr__(bundle, "config", config)
    with pytest.raises(BundleError, match="which features"):
        MILPredictor(bundle)


def paint_slide(path, side=2048, places=(512, 768)):
    """A slide with one piece of tissue; a quarter of it is dark."""
    import tifffile

    rng = np.random.default_rng(0)
    image = np.full((side, side, 3), 244, np.uint8)
    low, high = 256, side - 256
    tissue = rng.normal((200, 120, 170), 12, (high - low, high - low, 3)).clip(0, 255)
    image[low:high, low:high] = tissue
    x, y = places
    image[y : y + SIZE, x : x + SIZE] = rng.normal((70, 30, 120), 8, (SIZE, SIZE, 3)).clip(0, 255)
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, resolution=(1e4 / 0.5, 1e4 / 0.5), **options)
        writer.write(image[::4, ::4], subfiletype=1, resolution=(1e4 / 2, 1e4 / 2), **options)
    return path


def test_a_slide_becomes_scores_and_its_hot_patch_is_where_it_was(tmp_path):
    """From pixels to GeoJSON: a model whose attention follows darkness finds the one dark patch."""
    from medseq.inference.encoders import load_encoder

    slide = paint_slide(tmp_path / "slide.tif")
    encoder = load_encoder("hed-texture")
    dim = encoder.info.dim
    head = {"in_dim": dim, "d_model": 8, "attention_dim": 4}
    model = {"class_path": "medseq.models.mil_abmil.ABMIL", "init_args": {**head, "gated": False}}
    config = {
        "name": "dark",
        "version": "1.0",
        "task": "mil",
        "model": model,
        "input": {"kind": "slide", "feature_dim": dim, "encoder": "hed-texture", "mpp": 0.5},
        "output": {"kind": "scores", "classes": ["no", "yes"]},
    }
    from medseq.models.mil_abmil import ABMIL

    tiles = np.stack([np.full((SIZE, SIZE, 3), colour, np.uint8) for colour in ((200, 120, 170), (70, 30, 120))])
    light, dark = encoder.encode(tiles)
    net = ABMIL(**model["init_args"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        # One unit that is positive for dark patches only, and attention that follows it.
        direction = torch.from_numpy(dark - light)
        net.embed[0].weight[0] = direction / direction.square().sum()
        net.embed[0].bias[0] = -float(net.embed[0].weight[0] @ torch.from_numpy(light)) - 0.4
        net.attention.hidden.weight[0, 0] = 5
        net.attention.score.weight[0, 0] = 9
    bundle = save_bundle(tmp_path / "dark", config, net.state_dict(), metadata={"intended_use": "tests"}, card="# t\n")
    out = Folder(tmp_path / "out")
    prediction = MILPredictor(bundle, top=3).predict(
        open_mil_item(tmp_path, "item", "slide", [slide.name], tmp_path / "bags"), out
    )
    assert {"attention.png", "overlay.png", "overlay.geojson", "overlay.ome.tiff"} <= set(out.content())
    hottest = json.loads((tmp_path / "out" / "overlay.geojson").read_text())["features"][0]
    corner = np.array(hottest["geometry"]["coordinates"][0][0])
    assert np.abs(corner - (512, 768)).max() <= SIZE
    assert prediction.metrics["instances"] >= 30
    assert (tmp_path / "bags" / "item.h5").is_file()
