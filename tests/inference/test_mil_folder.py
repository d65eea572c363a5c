"""Folders of bags and slides through the whole engine."""

import json

import h5py
import numpy as np
import pytest
import torch

from medseq.inference.bundle import save_bundle
from medseq.inference.discover import discover
from medseq.inference.run import predict_folder
from medseq.io.bag_write import BagWriter
from medseq.io.slide_find import find_slides

DIM, SIZE = 6, 256


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def bundle(tmp_path):
    from medseq.models.mil_abmil import ABMIL

    torch.manual_seed(0)
    head = {"in_dim": DIM, "d_model": 8, "attention_dim": 4}
    config = {
        "name": "tiny-mil",
        "version": "1.0",
        "task": "mil",
        "model": {"class_path": "medseq.models.mil_abmil.ABMIL", "init_args": head},
        "input": {"kind": "bag", "feature_dim": DIM},
        "output": {"kind": "scores", "classes": ["no", "yes"], "threshold": 0.4},
    }
    points = [{"probability": 0.2, "observed": 0.1, "cases": 10}, {"probability": 0.8, "observed": 0.9, "cases": 5}]
    metadata = {"intended_use": "tests", "training": {"validation": {"calibration": points}}}
    return save_bundle(tmp_path / "bundle", config, ABMIL(**head).state_dict(), metadata=metadata, card="# A test\n")


def write_bag(path, rng, n=20, dim=DIM):
    cells = rng.choice(100, n, replace=False)
    writer = BagWriter(path, dim, encoder="e", mpp=0.5, patch_size_level0=SIZE, slide_id="s", patient_id="p")
    features = rng.standard_normal((n, dim)).astype(np.float32)
    writer.append(features, (np.stack([cells % 10, cells // 10], 1) * SIZE).astype(np.int64))
    writer.commit()
    return features


def write_slide(path):
    import tifffile

    image = np.full((SIZE * 10, SIZE * 10, 3), 200, np.uint8)
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, resolution=(20_000, 20_000), **options)


def report(out):
    return json.loads((out / "report.json").read_text())


def test_bags_of_every_kind_are_scored_and_the_rest_is_accounted_for(bundle, rng, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deeper").mkdir(parents=True)
    write_bag(source / "PLANTEDNAME.h5", rng)
    torch.save(torch.randn(9, DIM), source / "deeper" / "clam.pt")
    np.savez(source / "plain.npz", features=np.ones((4, DIM), np.float32))
    write_bag(source / "wide.h5", rng, dim=7)
    (source / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (source / "notes.md").write_text("hello")
    (source / "labels.csv").write_text("case,slide,label\na,b,1\n")
    table = ["1,a," + ",".join(map(str, rng.standard_normal(DIM))) for _ in range(3)]
    (source / "many.csv").write_text("\n".join([*table, *(row.replace("1,a", "0,b", 1) for row in table)]))
    summary = predict_folder(bundle, source, out)
    assert summary.exit_code == 3
    content = report(out)
    states = {}
    for item in content["items"]:
        states.setdefault(item["state"], []).append(item)
    assert len(states["done"]) == 5
    assert {item["reason_code"] for item in states["skipped"]} == {"not-mil", "not-bags"}
    assert sorted(item["reason_code"] for item in states["failed"]) == ["format", "shape"]
    assert any("wanted 6 of" in item["reason"] for item in states["failed"])
    for item in states["done"]:
        scores = json.loads((out / item["id"] / "scores.json").read_text())
        assert scores["call"] == ("yes" if scores["probabilities"][1] >= 0.4 else "no")
    page = (out / "report.html").read_text()
    assert "Heat map" in page
    assert "called from 0.4 on" in page
    assert "Calibration on 15 validation cases" in page
    assert "PLANTEDNAME" not in page + json.dumps(content)
    assert "Difference pictures" not in page
    again = predict_folder(bundle, source, out)
    assert again.processed == 0


def test_a_bag_with_its_slide_is_one_item_and_the_sheet_shows_its_patches(bundle, rng, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_bag(source / "case.h5", rng)
    write_slide(source / "case.tif")
    found = [item for item in discover(source, "bag") if item.state == "queued"]
    assert [(item.kind, len(item.files)) for item in found] == [("bag", 2)]
    out = tmp_path / "out"
    assert predict_folder(bundle, source, out).exit_code == 0
    assert (out / found[0].item_id / "attention.png").is_file()
    assert "Patches with the highest values" in (out / "report.html").read_text()


def test_a_slide_alone_without_an_encoder_fails_with_the_way_out(bundle, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_slide(source / "case.tif")
    assert predict_folder(bundle, source, tmp_path / "out").exit_code == 3
    (item,) = report(tmp_path / "out")["items"]
    assert "medseq wsi extract" in item["reason"]


def test_a_zarr_bag_is_one_item_named_like_its_folder(bundle, rng, tmp_path):
    import zarr

    source = tmp_path / "in"
    source.mkdir()
    group = zarr.open_group(source / "case.zarr", mode="w")
    group.create_array("features", data=rng.standard_normal((5, DIM)).astype(np.float32))
    out = tmp_path / "out"
    summary = predict_folder(bundle, source, out, names="source")
    assert summary.counts["done"] == 1
    assert (out / "case_scores.json").is_file()


def test_the_same_bag_gives_the_same_bytes_again(bundle, rng, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_bag(source / "case.h5", rng)
    hashes = []
    for name in ("a", "b"):
        predict_folder(bundle, source, tmp_path / name, created_utc="2026-01-02T03:04:05Z")
        (item,) = report(tmp_path / name)["items"]
        hashes.append({output["role"]: output["sha256"] for output in item["outputs"]})
    assert hashes[0] == hashes[1]


def test_a_file_that_only_looks_like_a_slide_fails_with_a_reason(bundle, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "fake.svs").write_bytes(b"no slide at all" * 100)
    assert find_slides(source)
    assert predict_folder(bundle, source, tmp_path / "out", encoder="hed-texture").exit_code == 3
    (item,) = report(tmp_path / "out")["items"]
    assert item["state"] == "failed"
    assert item["reason_code"] != "bug"


def test_features_that_became_nan_fail_with_their_rows(bundle, rng, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    write_bag(source / "case.h5", rng)
    with h5py.File(source / "case.h5", "r+") as file:
        file["features"][3] = np.nan
    assert predict_folder(bundle, source, tmp_path / "out").exit_code == 3
    assert "rows 3" in report(tmp_path / "out")["items"][0]["reason"]
