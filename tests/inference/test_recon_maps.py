"""Sensitivity maps that the caller names: the file meant is used, checked, and known by its content."""

import re

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.errors import InputError
from medseq.inference.ledger import Ledger
from medseq.inference.recon_maps import maps_digest, maps_of
from medseq.inference.run import predict_folder
from medseq.io.kspace_bart import write_cfl
from tests.inference.test_recon_folder import PLANTED, fastmri, lines
from tests.io.kspace_synthetic import fft2c, head_images

ROWS, COLS, COILS = 24, 28, 3


@pytest.fixture
def scene(tmp_path, rng):
    """Two fully sampled scans of the same coils, and the maps ``(coil, row, col)`` that explain them."""
    images = head_images(rng, COILS, ROWS, COLS)
    maps = images / np.maximum(np.linalg.norm(images, axis=0), 1e-6)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        fastmri(tmp_path / "in" / f"{name}.h5", fft2c(images)[None] * (1 if name == "a" else 2))
    return maps.astype(np.complex64)


def done(out):
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        return {ledger.files(item.id)[0].relpath: item for item in ledger.items()}


def residual(out):
    return {name: item.metrics.get("data_residual") for name, item in done(out).items()}


@pytest.mark.parametrize("form", ["npy", "cfl", "h5"])
def test_one_file_serves_every_scan(scene, tmp_path, recon_bundle, form):
    path = tmp_path / f"maps.{form}"
    if form == "npy":
        np.save(path, scene)
    elif form == "cfl":
        write_cfl(path.with_suffix(""), np.moveaxis(scene, 0, -1)[:, :, None])
    else:
        with h5py.File(path, "w") as file:
            file["sens_maps"] = scene
    summary = predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", sens_maps=path, orientations=1)
    assert summary.counts["done"] == 2, {name: item.reason for name, item in done(tmp_path / "out").items()}
    # These maps explain the data exactly; estimated ones, on so small a matrix, by far not.
    assert max(residual(tmp_path / "out").values()) < 1e-4
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "own", orientations=1)
    assert min(residual(tmp_path / "own").values()) > 1e-3


def test_a_folder_has_maps_for_each_scan(scene, tmp_path, recon_bundle):
    folder = tmp_path / "in" / "maps"
    folder.mkdir()
    np.save(folder / "a_sens.npy", scene)
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", sens_maps=folder, orientations=1)
    items = done(tmp_path / "out")
    assert {name: item.state for name, item in items.items()} == {
        "a.h5": "done",
        "b.h5": "failed",
        "maps/a_sens.npy": "skipped",
    }
    assert items["maps/a_sens.npy"].reason_code == "sens-maps"
    assert "a scan needs one file of sensitivity maps" in items["b.h5"].reason
    np.save(folder / "b.npy", scene)
    np.save(folder / "b_sens.npy", scene)
    with pytest.raises(InputError, match="found 2 of its name among 3"):
        maps_of(folder, tmp_path / "in" / "b.h5")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda maps: maps[:2], r"maps \(coil, row, col\) = \(2, 24, 28\), wanted \(3, 24, 28\)"),
        (lambda maps: maps[:, :-2], r"= \(3, 22, 28\), wanted \(3, 24, 28\)"),
        (lambda maps: np.stack([maps] * 5), "maps of 5 slices, wanted 1 slices, or 1 for all"),
        (lambda maps: maps * np.nan, "NaN|finite"),
    ],
)
def test_maps_that_do_not_fit_fail_their_scans(scene, tmp_path, recon_bundle, change, complaint, caplog):
    np.save(tmp_path / f"{PLANTED}.npy", change(scene))
    words = {"sens_maps": tmp_path / f"{PLANTED}.npy", "orientations": 1}
    assert predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", **words).exit_code == 3
    for item in done(tmp_path / "out").values():
        assert item.state == "failed"
        assert re.search(complaint, item.reason), item.reason
        assert PLANTED not in item.reason
    assert PLANTED not in caplog.text


def test_the_run_is_named_by_the_content_of_its_maps(scene, tmp_path, recon_bundle):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "maps.npy", scene)
    words = {"orientations": 1}
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", sens_maps=tmp_path / "one" / "maps.npy", **words)
    again = predict_folder(
        recon_bundle, tmp_path / "in", tmp_path / "out", sens_maps=tmp_path / "two" / "maps.npy", **words
    )
    assert again.processed == 0, "the same maps in another place"
    np.save(tmp_path / "two" / "maps.npy", scene * 1j)
    with pytest.raises(Exception, match="new-run|new_run"):
        predict_folder(
            recon_bundle, tmp_path / "in", tmp_path / "out", sens_maps=tmp_path / "two" / "maps.npy", **words
        )
    assert maps_digest(tmp_path / "one") != maps_digest(tmp_path / "two")


def test_nonsense_is_refused_before_anything_runs(scene, tmp_path, recon_bundle, rng):
    np.save(tmp_path / "maps.npy", scene)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="maps are named, and others asked for"):
        predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", sens="espirit", sens_maps=tmp_path / "maps.npy")
    for path in (tmp_path / "absent.npy", tmp_path / "empty"):
        with pytest.raises(InputError, match="no sensitivity maps at the place named"):
            predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", sens_maps=path)
    # Given, but nowhere: the item says so.
    fastmri(tmp_path / "in" / "a.h5", fft2c(head_images(rng, COILS, ROWS, COLS))[None] * lines(COLS))
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", sens="given", orientations=1)
    assert "holds no sensitivity maps" in done(tmp_path / "out")["a.h5"].reason
    assert "--sens-maps" in done(tmp_path / "out")["a.h5"].reason


def test_the_command_line(scene, tmp_path, recon_bundle):
    np.save(tmp_path / "maps.npy", scene)
    words = ["--sens", "given", "--sens-maps", str(tmp_path / "maps.npy"), "--orientations", "1", "--quiet"]
    result = CliRunner().invoke(
        app, ["predict", str(recon_bundle.folder), str(tmp_path / "in"), str(tmp_path / "out"), *words]
    )
    assert result.exit_code == 0, result.output
    assert max(residual(tmp_path / "out").values()) < 1e-4
