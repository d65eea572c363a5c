import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from medseq.errors import FormatError
from medseq.inference.preview import difference_text, display_window, png, preview
from medseq.inference.report import render_report, report_from_json
from medseq.inference.run import predict_folder
from medseq.io.volume import Volume


def picture(view, name):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(view["pictures"][name]))))


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (33, 47), (512, 512)])
def test_a_png_is_what_was_put_in(rng, shape):
    grey = rng.integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(png(grey)))
    assert (image.mode, image.size) == ("L", shape[::-1])
    np.testing.assert_array_equal(np.asarray(image), grey)


def test_the_ct_window_follows_what_the_slice_shows(rng):
    air, tissue = np.full((64, 64), -1000.0), rng.normal(40, 20, (64, 64))
    head = np.where(np.hypot(*np.mgrid[-32:32, -32:32]) < 20, tissue, air)
    assert display_window(head, None, "HU").name == "soft tissue"
    lung = np.where(rng.random((64, 64)) < 0.6, -800.0, tissue)
    assert display_window(lung, None, "HU").name == "lung"
    bone = np.where(rng.random((64, 64)) < 0.6, 900.0, tissue)
    assert display_window(bone, None, "HU").name == "bone"
    assert display_window(air, None, "HU").name == "soft tissue"


def test_other_modalities_are_shown_by_percentiles(rng):
    plane = rng.normal(500, 100, (200, 200))
    plane[0, :4] = 1e6
    window = display_window(plane, None, "1")
    assert window.low == pytest.approx(np.percentile(plane, 0.5))
    assert window.high < 1000, "a few hot pixels must not darken the picture"
    flat = display_window(np.full((5, 5), 7.0), None, "1")
    assert flat.high > flat.low
    nothing = display_window(np.zeros((5, 5)), np.zeros((5, 5), dtype=bool), "1")
    assert (nothing.low, nothing.high) == (0.0, 1.0)


def test_pictures_share_a_window_and_the_difference_is_centred():
    before = np.full((20, 30), 40.0, dtype=np.float32)
    after = before.copy()
    after[5, 5], after[6, 6] = 90.0, -200.0
    header = Volume.from_array(before[None], modality="CT", units="HU", affine=np.diag([-1.0, -1.0, 1, 1])).header
    view = preview(before, after, None, header, 0)
    # Soft tissue: -160 is black, 240 white.
    assert picture(view, "before")[0, 0] == round(255 * 200 / 400)
    assert picture(view, "after")[6, 6] == 0
    difference = picture(view, "difference")
    assert difference[0, 0] in (127, 128)
    assert (difference[5, 5], difference[6, 6]) == (255, 0)
    assert view["difference_half_width"] == 50
    assert "-50 HU (black)" in difference_text("HU")
    assert "10 %" in difference_text("1")


@pytest.mark.parametrize(
    ("affine", "corner"),
    [
        # Columns to the left, rows to the back: as DICOM stores an axial slice.
        (np.diag([-1.0, -1.0, 1.0, 1.0]), (0, 0)),
        # RAS, as NIfTI templates store it: both axes are turned round.
        (np.diag([1.0, 1.0, 1.0, 1.0]), (-1, -1)),
        # Rows and columns swapped.
        (np.array([[0.0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), (0, 0)),
        # Coronal: columns to the left, rows to the feet.
        (np.array([[-1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]), (0, 0)),
    ],
)
def test_pictures_are_turned_as_radiologists_look(affine, corner):
    plane = np.full((10, 20), -1000.0, dtype=np.float32)
    plane[0, 0] = 240.0
    header = Volume.from_array(plane[None], affine=affine, modality="CT", units="HU").header
    shown = picture(preview(plane, plane, None, header, 0), "before")
    assert shown[corner] == 255
    assert shown.shape == ((20, 10) if affine[0, 1] else (10, 20))


def test_large_planes_are_reduced_and_pixels_keep_their_shape():
    plane = np.zeros((1030, 2060), dtype=np.float32)
    header = Volume.from_array(plane[None], affine=np.diag([-0.5, -1.0, 1, 1]), modality="CT", units="HU").header
    view = preview(plane, plane, None, header, 0)
    assert max(picture(view, "before").shape) <= 512
    assert view["width_over_height"] == pytest.approx(1.0, rel=0.01)


@pytest.fixture
def run(make, ct_bundle, tmp_path, rng):
    """A run with a result, a failure, a wrong modality and something skipped."""
    make.series(tmp_path / "in" / "a", make.head(rng, 3))
    broken = make.series(tmp_path / "in" / "b", make.head(rng, 3))
    broken[1].write_bytes(broken[1].read_bytes()[:1500])
    make.nifti(tmp_path / "in" / "unknown.nii.gz", make.head(rng, 2))
    (tmp_path / "in" / "<script>.txt").write_text("x")
    summary = predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out", created_utc=make.created)
    return summary, tmp_path / "out", json.loads((tmp_path / "out" / "report.json").read_text())


def test_report_json_holds_the_whole_run(run, ct_bundle):
    summary, out, report = run
    assert (report["schema"], report["counts"]) == (1, summary.counts)
    assert report["run"]["bundle"]["hash"] == ct_bundle.hash
    assert report["run"]["params"] == {
        "tile": [64, 64],
        "overlap": 0.25,
        "blend": "gaussian",
        "batch": 4,
        "strength": 1.0,
        "difference": False,
        "uncertainty": False,
        "modality": None,
        "names": "id",
        "resample": False,
    }
    states = sorted(item["state"] for item in report["items"])
    assert states == ["done", "failed", "failed", "skipped"]
    done = next(item for item in report["items"] if item["state"] == "done")
    assert {output["role"]: output["files"] for output in done["outputs"]} == {"result": 3, "preview": 1}
    assert done["outputs"][-1]["relpath"] == f"{done['id']}/result"
    assert done["metrics"]["noise_sd_before"] > 0
    assert done["preview"]["plane"] == 1
    assert report["environment"]["medseq"]
    assert report["environment"]["device"] == "cpu"
    assert report["doctor"]["operators"][0]["operator"] == "bi_wkv"


def test_the_page_is_rendered_from_the_json_alone(run, tmp_path):
    _, out, report = run
    page = (out / "report.html").read_text()
    assert render_report(report) == page
    copy = shutil.copy(out / "report.json", tmp_path / "elsewhere.json")
    shutil.rmtree(out)
    assert report_from_json(copy) == page


def test_the_page_is_self_contained_and_says_what_matters(run):
    _, out, report = run
    page = (out / "report.html").read_text()
    assert "<script" not in page
    # The pages of single items lie beside it.
    assert not re.findall(r"(?:src|href)=['\"](?!data:|report/[0-9a-f]{16}\.html)", page)
    assert "Research use only. Not for diagnosis." in page
    assert page.count("data:image/png;base64,") == 3
    assert "-50 HU (black) over 0 (mid grey) to +50 HU (white), the same for every item" in page
    assert page.index("<h2>Failed") < page.index("<h2>Results") < page.index("<h2>Skipped")
    for item in report["items"]:
        if item["state"] != "skipped":
            assert item["id"] in page
    assert "pass --modality CT" in page
    assert page.count("<article class='failed'>") == 2


def test_another_schema_is_refused(run, tmp_path):
    _, _, report = run
    with pytest.raises(FormatError, match=r"report has another schema \(found 2, wanted 1\)"):
        render_report(report | {"schema": 2})
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(FormatError, match=r"report.json is not readable"):
        report_from_json(tmp_path / "x.json")


def test_hostile_text_is_escaped(run):
    _, _, report = run
    hostile = "<img src=x onerror=alert(1)>"
    for item in report["items"]:
        item.update(label=hostile, reason=hostile, reason_code=hostile)
        item["flags"] = [{"code": hostile, "message": hostile, "level": hostile}]
    report["run"]["bundle"].update(name=hostile, intended_use=hostile)
    page = render_report(report)
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_show_identifiers_names_the_files(run, make, ct_bundle, tmp_path):
    predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out", show_identifiers=True)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {item["source"].split("/")[0] for item in report["items"]} >= {"a", "b", "unknown.nii.gz"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "unknown.nii.gz" in page
    predict_folder(ct_bundle, tmp_path / "in", tmp_path / "out")
    assert "unknown.nii.gz" not in (tmp_path / "out" / "report.html").read_text()


def test_pictures_stop_at_a_budget_and_the_page_says_so(make, ct_bundle, tmp_path, rng, monkeypatch):
    from medseq.inference import report_json

    for name in "abc":
        make.series(tmp_path / "in" / name, make.head(rng, 1))
    out = tmp_path / "out"
    predict_folder(ct_bundle, tmp_path / "in", out)
    size = max(path.stat().st_size for path in out.glob("*/preview.json"))
    monkeypatch.setattr(report_json, "_PICTURE_BYTES", int(2.5 * size))
    predict_folder(ct_bundle, tmp_path / "in", out)
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "Pictures of 2 of 3 items fit into this page" in page


@pytest.mark.browser
def test_the_page_draws_in_a_browser(run, tmp_path):
    _, out, _ = run
    browser = shutil.which("chromium")
    assert browser, "chromium is missing: make system-test-deps installs it"
    shot = tmp_path / "shot.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--screenshot={shot}", "--window-size=1280,1600", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*command, (out / "report.html").as_uri()], check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (1600, 1280)
    # The notice's amber strip on top, the red mark of failures below it, and pictures: not a blank page.
    assert (pixels[4] == pixels[4, 4]).all()
    assert pixels[4, 4, 2] < pixels[4, 4, 0]
    reds = (pixels[..., 0] > 150) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    assert reds.sum() > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def ledger_of(folder, count):
    """A finished run of so many items, each with a preview and a page."""
    from medseq.inference.ledger import FileRow, Ledger, OutputRow, RunRow

    folder.mkdir()
    (folder / "report").mkdir()
    preview = json.dumps({"pictures": dict.fromkeys(("before", "after", "difference"), "A" * 1000)} | VIEW)
    ledger = Ledger(folder / "run.sqlite")
    ledger.begin_run(RunRow("b" * 64, {"names": "id"}, "p" * 64, "0.1.0", "2026-01-02T03:04:05Z"))
    with ledger.batch():
        for number in range(count):
            name = f"{number:016x}"
            ledger.add_item(name, "nifti", f"file-{number}.nii", [FileRow(f"{number}.nii", 1, 1)])
            ledger.claim("w", 60, name)
            (folder / name).mkdir()
            (folder / name / "preview.json").write_text(preview)
            (folder / "report" / f"{name}.html").write_text("x")
            rows = [
                OutputRow("result", f"{name}/result.nii.gz", "0" * 64, 1),
                OutputRow("preview", f"{name}/preview.json", "0" * 64, len(preview)),
            ]
            ledger.stage_outputs(name, rows)
            ledger.finish(
                name, "w", seconds=1.0, peak_mb=1.0, input_sha256="0" * 64, metrics={"mean_shift": 0.5}, flags=[]
            )
    return ledger


VIEW = {
    "plane": 1,
    "planes": 3,
    "shape": [3, 8, 8],
    "width_over_height": 1.0,
    "difference_half_width": 5.0,
    "window": {"name": "whole", "low": 0.0, "high": 1.0, "units": "1"},
}
BUNDLE = {"name": "tiny", "version": "1", "hash": "b" * 64, "task": "restore", "modality": ["MR"], "units": "1"}


def test_the_reports_of_a_run_take_no_more_memory_for_more_items(tmp_path):
    import tracemalloc

    from medseq.inference.run_report import RunReport

    peaks = {}
    # Once before: what is imported, and caches of the parser, belong to no run.
    for count in (10, 20, 2000):
        out = tmp_path / str(count)
        with ledger_of(out, count) as ledger:
            report = RunReport(ledger, out, BUNDLE, {"operators": []}, show_identifiers=False)
            tracemalloc.start()
            assert report.write(finished_utc="2026-01-02T03:05:00Z", interrupted=False) == out / "report.html"
            peaks[count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        written = json.loads((out / "report.json").read_text())
        assert len(written["items"]) == count
        assert written["run"]["items_with_pictures"] == count
        assert all(item["preview"]["plane"] == 1 for item in written["items"])
        page = (out / "report.html").read_text()
        assert page.count("<article>") == min(count, 500) + 1
        assert ("1500 more are listed in report.json" in page) == (count == 2000)
        assert page == report_from_json(out / "report.json")
    # 2 000 previews are 7 MB; a page of ids and 500 items ahead is what may be held.
    assert peaks[2000] < peaks[20] + 400_000, peaks
