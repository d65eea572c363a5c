"""Folders of raw MR data of every format: each file ends in an item with a reason; nothing is lost, nobody is named."""

import json
import resource
import threading

import h5py
import ismrmrd
import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.errors import InputError
from medseq.inference.bundle import save_bundle
from medseq.inference.ledger import Ledger
from medseq.inference.run import check_run, predict_folder
from medseq.io.kspace_bart import write_cfl
from tests.io.kspace_synthetic import fft2c, head_images, head_kspace, header_xml

PLANTED = "PLANTEDNAME"
SIZES = {"cascades": 1, "width": 4, "memory": 1, "iterations": 2}


def save(folder, model, class_path, init_args, **more):
    """A bundle with the sections of the shipped one."""
    config = {
        "name": folder.name,
        "version": "1.0",
        "task": "recon",
        "model": {"class_path": class_path, "init_args": init_args},
        "input": {"kind": "kspace", "modality": ["MR"], "units": "1", "fft": "centre"},
        "output": {"kind": "volume", "units": "1"},
        "checks": [{"name": "data_residual", "max": 0.9, "unit": "1"}],
        **more,
    }
    return save_bundle(folder, config, model.state_dict(), metadata={"intended_use": "tests"}, card="# Tiny\n")


def lines(cols):
    mask = np.zeros(cols, bool)
    mask[::2], mask[cols // 2 - 6 : cols // 2 + 6] = True, True
    return mask


def fastmri(path, kspace, *, key="kspace", **more):
    with h5py.File(path, "w") as file:
        file[key] = kspace
        for name, value in more.items():
            file[name] = value
    return path


def calgary(path, rng, rows=32, cols=36):
    images = np.stack([head_images(rng, 3, rows, cols)] * 2)
    kspace = np.fft.fftshift(np.fft.fft2(images, norm="ortho"), axes=(-2, -1)).transpose(0, 2, 3, 1)
    pairs = np.stack([kspace.real, kspace.imag], axis=-1).reshape(*kspace.shape[:3], -1)
    return fastmri(path, pairs.astype(np.float32))


def mrd(path, rng, contrasts=1, rows=32, cols=28):
    limits = {"kspace_encoding_step_1": (cols - 1, cols // 2)}
    size, fov = (rows, cols, 1), (rows * 1.5, cols * 0.8, 4.0)
    xml = header_xml(size, size, fov, fov, limits=limits)
    person = f"<subjectInformation><patientName>{PLANTED}</patientName></subjectInformation>"
    xml = xml.replace("<acquisitionSystemInformation>", f"{person}<acquisitionSystemInformation>", 1)
    data = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    data.write_xml_header(xml.encode())
    for contrast in range(contrasts):
        kspace = head_kspace(rng, 1, 3, rows, cols)[0]
        for ky in np.flatnonzero(lines(cols)):
            line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[:, :, ky]))
            line.center_sample, line.position[:] = rows // 2, (5, 6, 7)
            line.read_dir[:], line.phase_dir[:], line.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
            line.idx.kspace_encode_step_1, line.idx.contrast = int(ky), contrast
            data.append_acquisition(line)
    data.close()
    return path


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture
def mixed(tmp_path, rng):
    """One file of every format, a sound and a broken one."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    kspace = head_kspace(rng, 2, 3, 32, 36)
    fastmri(folder / f"{PLANTED}.h5", kspace * lines(36), mask=lines(36))
    fastmri(folder / "sub" / "whole.h5", kspace)
    calgary(folder / "calgary.h5", rng)
    mrd(folder / "two.mrd", rng, contrasts=2)
    images = head_images(rng, 3, 33, 30)
    maps = images / np.maximum(np.linalg.norm(images, axis=0), 1e-6)
    write_cfl(folder / "scan", np.moveaxis(fft2c(images) * lines(30), 0, -1)[:, :, None])
    write_cfl(folder / "scan_sens", np.moveaxis(maps, 0, -1)[:, :, None])
    np.save(folder / "own.npy", kspace * lines(36))
    np.save(folder / "own_mask.npy", lines(36))
    (folder / "own.yaml").write_text(
        "axes: [slice, coil, row, col]\nmask: own_mask.npy\nspacing_mm: [5, 1.5, 0.7]\nrecon_shape: [24, 30]\n"
    )
    (folder / "notes.txt").write_text("hello")
    whole = (folder / "sub" / "whole.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    fastmri(folder / "odd.h5", np.zeros(3), key="something_else")
    fastmri(folder / "nan.h5", np.where(np.arange(36) == 18, np.nan, kspace).astype(np.complex64))
    return folder


def rows(out):
    with Ledger(out / "run.sqlite", read_only=True) as ledger:
        return {
            item.id: (item, tuple(r.relpath for r in ledger.files(item.id)), ledger.outputs(item.id))
            for item in ledger.items()
        }


def by_name(out):
    """Name of the first file -> its items."""
    found: dict[str, list] = {}
    for item, files, outputs in rows(out).values():
        found.setdefault(files[0], []).append((item, files, outputs))
    return found


def test_every_file_ends_in_an_item_with_a_reason(mixed, recon_bundle, tmp_path, caplog):
    summary = predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1)
    found = by_name(tmp_path / "out")
    reasons = {name: [(item.state, item.reason) for item, _, _ in items] for name, items in found.items()}
    assert summary.exit_code == 3
    assert [state for state, _ in reasons["two.mrd"]] == ["done", "done"]
    for name in (f"{PLANTED}.h5", "sub/whole.h5", "calgary.h5", "scan.cfl", "own.npy"):
        assert [state for state, _ in reasons[name]] == ["done"], reasons[name]
    for name in ("cut.h5", "odd.h5", "nan.h5"):
        assert [state for state, _ in reasons[name]] == ["failed"]
    assert "something_else" in reasons["odd.h5"][0][1], "the message lists the keys that are there"
    assert "NaN" in reasons["nan.h5"][0][1] or "finite" in reasons["nan.h5"][0][1]
    assert [state for state, _ in reasons["notes.txt"]] == ["skipped"]
    # Every file of the folder belongs to exactly one source.
    named = [file for items in found.values() for file in items[0][1]]
    everything = sorted(path.relative_to(mixed).as_posix() for path in mixed.rglob("*") if path.is_file())
    assert sorted(named) == everything
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Contradiction of the data, worst slice" in report
    assert "unknown" not in report
    told = report + (tmp_path / "out" / "report.json").read_text() + caplog.text
    ledger = (tmp_path / "out" / "run.sqlite").read_bytes()
    assert PLANTED not in told
    assert f"{PLANTED}</".encode() not in ledger
    assert report.count("<svg") + report.count("<img") >= 7, "a picture of every result"
    assert check_run(tmp_path / "out").problems == ()


def test_outputs_geometry_and_flags(mixed, recon_bundle, tmp_path):
    predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1)
    found = by_name(tmp_path / "out")
    for items in found.values():
        for item, _, outputs in items:
            if item.state != "done":
                continue
            assert {output.role for output in outputs} == {"result", "preview"}
            with h5py.File(tmp_path / "out" / item.id / "result.h5") as file:
                image, values = file["reconstruction"][:], file["reconstruction_complex"][:]
            assert image.dtype == np.float32
            np.testing.assert_allclose(image, np.abs(values), rtol=1e-6)
            volume = nib.load(tmp_path / "out" / item.id / "result.nii.gz")
            np.testing.assert_allclose(volume.get_fdata().transpose(2, 1, 0), image, rtol=1e-5)
            assert item.metrics["acceleration"] >= 1
    flags = {name: {flag["code"]: flag["level"] for flag in items[0][0].flags} for name, items in found.items()}
    assert flags["sub/whole.h5"]["fully-sampled"] == "info"
    assert found["sub/whole.h5"][0][0].metrics["data_residual"] < 0.2, "what ESPIRiT's maps leave out, nothing else"
    assert "mask-derived" in flags["scan.cfl"]
    assert "fully-sampled" not in flags[f"{PLANTED}.h5"]
    own = nib.load(tmp_path / "out" / found["own.npy"][0][0].id / "result.nii.gz")
    assert own.shape == (30, 24, 2)
    np.testing.assert_allclose(own.header.get_zooms(), (0.7, 1.5, 5), rtol=1e-6)
    scanner = nib.load(tmp_path / "out" / found["two.mrd"][0][0].id / "result.nii.gz")
    # Pixel n // 2 lies at the position of the header, LPS.
    centre = scanner.affine @ [28 // 2, 32 // 2, 0, 1]
    np.testing.assert_allclose(centre[:3], (-5, -6, 7), atol=1e-3)


def test_resume_repeats_nothing_and_a_second_run_writes_the_same_bytes(mixed, recon_bundle, tmp_path, make):
    for name in ("out", "again"):
        predict_folder(recon_bundle, mixed, tmp_path / name, orientations=1, created_utc=make.created)
    before = make.tree(tmp_path / "out")
    assert make.tree(tmp_path / "again") == before
    summary = predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1)
    assert summary.processed == 0
    assert make.tree(tmp_path / "out") == before
    next((tmp_path / "out").glob("*/result.h5")).unlink()
    assert predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1).processed == 1
    assert make.tree(tmp_path / "out") == before


def test_source_names_keep_contrasts_apart(recon_bundle, tmp_path, rng):
    (tmp_path / "in" / "day1").mkdir(parents=True)
    mrd(tmp_path / "in" / "day1" / "brain.mrd", rng, contrasts=2)
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", names="source", orientations=1)
    names = {path.name for path in (tmp_path / "out" / "day1").iterdir()}
    stems = ("brain_contrast-0", "brain_contrast-1")
    assert names == {f"{stem}{suffix}" for stem in stems for suffix in (".h5", ".nii.gz")}


def test_words_of_the_wrong_task_are_refused(recon_bundle, make, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=r"strength means nothing for this bundle.*sens, .*fft"):
        predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", strength=0.5)
    with pytest.raises(InputError, match=r"sens means nothing for this bundle.*strength"):
        predict_folder(make.bundle(tmp_path / "ct"), tmp_path / "in", tmp_path / "out", sens="espirit")
    with pytest.raises(InputError, match=r"fft is unknown.*centre or corner"):
        predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", fft="sideways")


def test_a_volume_bundle_takes_no_raw_data(make, tmp_path, rng):
    (tmp_path / "in").mkdir()
    make.nifti(tmp_path / "in" / "a.nii", rng.random((2, 16, 16)) * 100)
    fastmri(tmp_path / "in" / "raw.h5", head_kspace(rng, 1, 2, 16, 16))
    bundle = make.bundle(tmp_path / "mr", modality=("MR",), units="1")
    summary = predict_folder(bundle, tmp_path / "in", tmp_path / "out", modality="MR")
    assert (summary.counts["done"], summary.counts["skipped"], summary.counts["failed"]) == (1, 1, 0)


def test_empty_slices_stay_zero_and_an_empty_scan_fails(recon_bundle, tmp_path, rng):
    (tmp_path / "in").mkdir()
    kspace = head_kspace(rng, 3, 2, 24, 28)
    kspace[1] = 0
    fastmri(tmp_path / "in" / "hole.h5", kspace * lines(28), mask=lines(28))
    fastmri(tmp_path / "in" / "nothing.h5", np.zeros_like(kspace), mask=lines(28))
    predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", orientations=1)
    found = by_name(tmp_path / "out")
    item = found["hole.h5"][0][0]
    assert "empty-slices" in {flag["code"] for flag in item.flags}
    with h5py.File(tmp_path / "out" / item.id / "result.h5") as file:
        assert [bool(plane.any()) for plane in file["reconstruction"]] == [True, False, True]
    assert found["nothing.h5"][0][0].state == "failed"


@pytest.mark.parametrize("dtype", ["f2", "c16"])
def test_other_number_types(recon_bundle, tmp_path, rng, dtype):
    (tmp_path / "in").mkdir()
    kspace = head_kspace(rng, 1, 2, 24, 28)
    stored = kspace.astype("c16")
    if dtype == "f2":
        stored = np.zeros(kspace.shape, [("r", "f2"), ("i", "f2")])
        stored["r"], stored["i"] = kspace.real, kspace.imag
    fastmri(tmp_path / "in" / "a.h5", stored)
    summary = predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", orientations=1)
    assert summary.counts["done"] == 1, by_name(tmp_path / "out")


@pytest.mark.parametrize("shape", [(1, 25, 27), (1, 24, 28), (2, 33, 30)])
def test_one_coil_and_odd_sizes(recon_bundle, tmp_path, rng, shape):
    (tmp_path / "in").mkdir()
    # fastMRI keeps single-coil data without an axis of coils.
    fastmri(tmp_path / "in" / "a.h5", head_kspace(rng, shape[0], 1, *shape[1:])[:, 0] * lines(shape[2]))
    summary = predict_folder(recon_bundle, tmp_path / "in", tmp_path / "out", orientations=1)
    assert summary.counts["done"] == 1, by_name(tmp_path / "out")
    with h5py.File(next((tmp_path / "out").glob("*/result.h5"))) as file:
        assert file["reconstruction"].shape == shape


def test_another_fourier_convention_is_seen_or_obeyed(recon_bundle, tmp_path, rng):
    (tmp_path / "in").mkdir()
    kspace = head_kspace(rng, 1, 3, 32, 36)
    np.save(tmp_path / "in" / "a.npy", kspace)
    images = {}
    for name, stored, fft in (
        ("centre", kspace, None),
        ("seen", np.fft.ifftshift(kspace, axes=(-2, -1)), None),
        ("told", np.fft.ifftshift(kspace, axes=(-2, -1)), "corner"),
        ("wrong", kspace, "corner"),
    ):
        np.save(tmp_path / "in" / "a.npy", stored)
        predict_folder(recon_bundle, tmp_path / "in", tmp_path / name, orientations=1, fft=fft)
        item = by_name(tmp_path / name)["a.npy"][0][0]
        flagged = "fft-convention" in {flag["code"] for flag in item.flags if flag["level"] == "warn"}
        assert flagged == (name in ("seen", "wrong")), (name, item.flags)
        if item.state == "done":
            with h5py.File(next((tmp_path / name).glob("*/result.h5"))) as file:
                images[name] = file["reconstruction"][0]
    for name in ("seen", "told"):
        # Samples at the corner mean an image that starts at the corner, or one that is moved to the middle.
        shift = np.fft.fftshift(images[name])
        close = min(np.linalg.norm(x - images["centre"]) for x in (images[name], shift))
        assert close < 0.02 * np.linalg.norm(images["centre"]), name


def test_fewer_coils_change_little(recon_bundle, tmp_path, rng):
    (tmp_path / "in").mkdir()
    fastmri(tmp_path / "in" / "a.h5", head_kspace(rng, 1, 8, 32, 36))
    images = []
    for coils in (8, 5):
        out = tmp_path / f"out{coils}"
        predict_folder(recon_bundle, tmp_path / "in", out, orientations=1, virtual_coils=coils)
        with h5py.File(next(out.glob("*/result.h5"))) as file:
            images.append(file["reconstruction"][:])
    # Eight smooth coils have fewer than five independent directions of any weight.
    assert np.linalg.norm(images[1] - images[0]) < 0.05 * np.linalg.norm(images[0])


def test_a_stop_leaves_nothing_half_done_and_is_resumed(mixed, recon_bundle, tmp_path, monkeypatch):
    from medseq.inference import run as engine

    stop = threading.Event()

    def after_two(done, total, text):
        if done >= 5:
            stop.set()

    from contextlib import nullcontext

    monkeypatch.setattr(engine, "stop_on_signals", lambda: nullcontext(stop))
    first = predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1, progress=after_two)
    assert first.exit_code == 130
    assert first.counts["queued"] > 0
    assert not (tmp_path / "out" / ".work").exists()
    stop = threading.Event()
    second = predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1)
    assert second.counts["queued"] == 0
    assert first.processed + second.processed == 8, "seven sound items, and one whose samples show NaN when read"


def test_memory_does_not_grow_with_the_slices(recon_bundle, tmp_path, rng):
    one, peaks = head_kspace(rng, 1, 2, 16, 20)[0], []
    for slices in (2, 24):
        folder = tmp_path / f"in{slices}"
        folder.mkdir()
        with h5py.File(folder / "a.h5", "w") as file:
            data = file.create_dataset("kspace", (slices, 2, 256, 320), "c8", chunks=(1, 2, 256, 320))
            for i in range(slices):
                data[i, :, 120:136, 150:170] = one
        predict_folder(recon_bundle, folder, tmp_path / f"out{slices}", orientations=1, sens="estimate")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    # 22 slices more are 29 MB of samples and 22 MB of results; what one slice needs was there before.
    assert peaks[1] - peaks[0] < 15


def test_what_belongs_to_a_scan_counts_as_its_input(recon_bundle, mixed, tmp_path):
    predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1)
    found = by_name(tmp_path / "out")
    assert set(found["own.npy"][0][1]) == {"own.npy", "own.yaml", "own_mask.npy"}
    assert set(found["scan.cfl"][0][1]) == {"scan.cfl", "scan.hdr", "scan_sens.cfl", "scan_sens.hdr"}
    np.save(mixed / "own_mask.npy", np.ones(36, bool))
    assert predict_folder(recon_bundle, mixed, tmp_path / "out", orientations=1).processed == 1, "another mask"


def test_a_bundle_of_another_network_reports_what_it_changes(tmp_path, rng):
    from medseq.models.recon_varnet import VarNet
    from medseq.nn.sensitivity import SensitivityNet

    sizes = {"num_cascades": 1, "channels": 4, "pools": 2, "fft_origin": "corner", "fft_norm": "backward"}
    habits = {"channels": 4, "pools": 2, "fft_origin": "corner", "fft_norm": "backward"}
    maker = {"class_path": "medseq.nn.sensitivity.SensitivityNet", "init_args": habits}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = VarNet(**sizes, sens_net=SensitivityNet(**habits))
    bundle = save(tmp_path / "varnet", model, "medseq.models.recon_varnet.VarNet", sizes | {"sens_net": maker})
    (tmp_path / "in").mkdir()
    fastmri(tmp_path / "in" / "full.h5", head_kspace(rng, 1, 3, 32, 36))
    fastmri(tmp_path / "in" / "half.h5", head_kspace(rng, 1, 3, 32, 36) * lines(36))
    summary = predict_folder(bundle, tmp_path / "in", tmp_path / "out")
    assert summary.counts["done"] == 2, by_name(tmp_path / "out")
    found = by_name(tmp_path / "out")
    item = found["full.h5"][0][0]
    assert item.metrics["change_when_full"] > 0
    told = {flag["code"]: flag for flag in item.flags}["fully-sampled"]
    assert (told["level"], "changed them by" in told["message"]) == ("warn", True)
    assert "change_when_full" not in found["half.h5"][0][0].metrics


def test_the_command_line(recon_bundle, tmp_path, rng):
    (tmp_path / "in").mkdir()
    fastmri(tmp_path / "in" / f"{PLANTED}.h5", head_kspace(rng, 1, 3, 24, 28) * lines(28))
    path = str(recon_bundle.folder)
    words = ["--sens", "estimate", "--fft", "centred", "--virtual-coils", "2", "--orientations", "1", "--json"]
    result = CliRunner().invoke(app, ["predict", path, str(tmp_path / "in"), str(tmp_path / "out"), *words])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["counts"]["done"] == 1
    assert PLANTED not in result.output
    run = json.loads((tmp_path / "out" / "report.json").read_text())["run"]
    assert {"sens": "estimate", "fft": "centre", "virtual_coils": 2, "orientations": 1}.items() <= run["params"].items()
