"""`medseq wsi`: what it prints, what it leaves behind, and its exit codes."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from medseq.cli.main import app
from medseq.io.privacy import show_identifiers
from tests.io.slide_synthetic import break_tile, ellipse, real_svs, stained, write_svs, write_tiff


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def identifiers_hidden():
    yield
    show_identifiers(False)


def medseq(*arguments):
    return CliRunner().invoke(app, ["wsi", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path, rng):
    """A good slide, one without a resolution, one that is none, and one with a broken tile."""
    image = stained(rng, ellipse(900, 900, 450, 450, 400, 400))
    here = tmp_path / "in"
    write_svs(here / "JANE_DOE.svs", image, factors=(4,))
    write_svs(here / "unknown.svs", image, None, factors=())
    (here / "none.tif").write_bytes(b"no slide at all")
    break_tile(write_tiff(here / "worn.tif", image, compression="jpeg", tile=(256, 256), factors=(4,)), 5)
    return here


def test_check_tells_what_every_slide_is_and_what_it_needs(folder):
    done = medseq("check", folder, "--json")
    assert done.exit_code == 3
    good, none, unknown, worn = json.loads(done.stdout)
    assert (good["format"], good["dims"], good["downsamples"]) == ("aperio", [[900, 900], [225, 225]], [1.0, 4.0])
    assert (good["mpp"], good["mpp_source"], good["objective_power"]) == ([0.5, 0.5], "file", 20.0)
    assert (good["is_usable"], good["bad"], good["problems"]) == (True, 0, [])
    assert (none["is_usable"], none["format"]) == (False, None)
    assert "not a slide that can be read" in none["problems"][0]
    assert (unknown["is_usable"], unknown["mpp"]) == (False, None)
    assert "--mpp" in unknown["problems"][0]
    assert "20x" in unknown["problems"][0]
    # 2 x 2 blocks of 512 at level 0 and one at level 1.
    assert (worn["scanned"], worn["bad"], worn["is_usable"]) == (5, 1, False)
    assert worn["problems"] == ["1 of 5 blocks cannot be read"]
    assert "JANE" not in done.output


def test_check_with_the_users_resolution(folder):
    [slide] = json.loads(medseq("check", folder / "unknown.svs", "--mpp", "0.4", "--json", "--scan", "none").stdout)
    assert (slide["is_usable"], slide["mpp"], slide["mpp_source"], slide["scanned"]) == (True, [0.4, 0.4], "user", 0)


def test_check_as_a_table(folder, tmp_path):
    done = medseq("check", real_svs(), "--scan", "all")
    assert done.exit_code == 0
    assert "2220 x 2967" in done.stdout
    assert "0.499 (file)" in done.stdout
    assert "0 of 30" in done.stdout
    assert "cmu" not in done.stdout
    assert "cmu_small_region.svs" in medseq("check", real_svs(), "--show-identifiers", "--scan", "none").stdout
    (tmp_path / "empty").mkdir()
    assert medseq("check", tmp_path / "empty").exit_code == 2
    assert medseq("check", tmp_path / "nowhere").exit_code == 2
    assert medseq("check", folder, "--mpp", "500").exit_code == 2


def test_tissue_leaves_a_picture_a_slide_and_a_table(folder, tmp_path):
    done = medseq("tissue", folder, tmp_path / "out", "--json")
    assert done.exit_code == 3
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {name for name, row in rows.items() if row["state"] == "done"} == {"JANE_DOE", "worn"} - (
        {"worn"} if rows["worn"]["state"] == "failed" else set()
    )
    assert rows["JANE_DOE"]["qc"]["tissue_mm2"] == pytest.approx(np.pi * 0.04, rel=0.05)
    assert "--mpp" in rows["unknown"]["reason"]
    assert (tmp_path / "out" / "JANE_DOE.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "tissue.json").read_text())["slides"] == list(rows.values())
    table = medseq("tissue", folder, tmp_path / "out2", "--mpp", "0.5")
    assert "0.126" in table.stdout
    assert "JANE" not in table.stdout


def test_an_empty_slide_is_a_failure_with_a_picture(tmp_path, rng):
    write_tiff(tmp_path / "in" / "a.tif", np.full((500, 500, 3), 244, np.uint8))
    done = medseq("tissue", tmp_path / "in", tmp_path / "out")
    assert done.exit_code == 3
    assert "no tissue was found" in done.stdout
    assert (tmp_path / "out" / "a.png").exists()


def test_extract_writes_bags_and_says_what_failed(folder, tmp_path):
    out = tmp_path / "out"
    done = medseq(
        "extract", folder, out, "--tile", "128", "--overlap", "0.25", "--stain", "macenko", "--max-bad-tiles", "0.5"
    )
    assert done.exit_code == 3
    assert "2 failed" in done.output
    assert "--mpp" in done.output
    assert "JANE" not in done.output
    with h5py.File(out / "JANE_DOE.h5") as file:
        assert file["features"].shape[1] == 96
        about = dict(file["coords"].attrs)
    assert (about["patch_size"], about["step_level0"], about["stain"]) == (128, 96, "macenko")
    assert medseq("extract", folder, out, "--tile", "128").exit_code == 3
    assert "there already" in medseq("extract", folder / "JANE_DOE.svs", out, "--tile", "128").output
    again = medseq("extract", folder / "JANE_DOE.svs", out, "--tile", "128", "--overwrite", "--json")
    assert json.loads(again.stdout)["counts"] == {"done": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoder", "resnet"], "no such encoder"),
        (["--mean", "0.5"], "three numbers"),
        (["--encoder", "nowhere.onnx", "--values", "255"], "no such encoder"),
        (["--overlap", "1"], "overlap out of range"),
        (["--mpp-target", "0.1"], "scanned too coarsely"),
    ],
)
def test_mistakes_are_said(folder, tmp_path, arguments, message):
    done = medseq("extract", folder / "JANE_DOE.svs", tmp_path / "out", *arguments)
    assert done.exit_code in (2, 3)
    assert message in done.output


def test_options_of_a_network_reach_it(folder, tmp_path, rng):
    from tests.inference.onnx_synthetic import write_network

    network = write_network(tmp_path / "a.onnx", rng.normal(size=(5, 3, 3, 3)), side=64)
    words = ["--encoder", network, "--values", "255", "--colours", "bgr", "--sd", "1,1,1", "--output-node", "pooled"]
    done = medseq("extract", folder / "JANE_DOE.svs", tmp_path / "out", "--encoder-mpp", "0.25", "--tile", "64", *words)
    assert done.exit_code == 0, done.output
    assert "made for 0.25 um/px" in done.output
    encoder = json.loads((tmp_path / "out" / "extract.json").read_text())["encoder"]
    assert (encoder["dim"], encoder["settings"]["sd"], encoder["settings"]["scale"]) == (5, [1, 1, 1], 1)
    assert encoder["settings"]["mean"] == pytest.approx([0.485 * 255, 0.456 * 255, 0.406 * 255])
    wrong = medseq("extract", folder / "JANE_DOE.svs", tmp_path / "out2", "--encoder", network)
    assert wrong.exit_code == 2
    assert "use --tile 64" in wrong.output


def test_extraction_with_the_built_in_encoder_loads_no_torch(folder, tmp_path):
    code = (
        "import sys; sys.argv = ['medseq', 'wsi', 'extract', *sys.argv[1:]]\n"
        "from medseq.cli.main import app\n"
        "try:\n    app()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    words = [sys.executable, "-c", code, str(folder / "JANE_DOE.svs"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[-1] == "False"
