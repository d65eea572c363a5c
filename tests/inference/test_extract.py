"""Slides become bags: the right rows in the right places, the same after a kill, or an error that says why not."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from medseq.errors import FormatError, InputError, OutputError
from medseq.inference.encoders import EncoderInfo, load_encoder
from medseq.inference.extract import extract_slide
from medseq.inference.extract_folder import extract_folder
from medseq.inference.extract_settings import ExtractSettings
from medseq.io.slide_open import open_slide
from medseq.io.tiles import read_tiles, tile_grid
from medseq.io.tissue import find_tissue, read_overview
from tests.inference.onnx_synthetic import write_network
from tests.io.slide_synthetic import break_tile, ellipse, real_svs, stained, write_svs, write_tiff


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


class MeanColour:
    """Features that can be checked by hand: the mean colour of a tile, and the size of its batch."""

    info = EncoderInfo("mean-colour", "built-in", 4, mpp=0.5)

    def encode(self, tiles):
        colours = tiles.mean(axis=(1, 2), dtype=np.float64)
        return np.column_stack([colours, np.full(len(tiles), len(tiles))]).astype(np.float32)


def bag(path):
    with h5py.File(path) as file:
        return file["features"][()], file["coords"][()], dict(file["coords"].attrs), dict(file["features"].attrs)


@pytest.fixture
def slide(tmp_path, rng):
    mask = ellipse(1000, 1200, 500, 600, 400, 500)
    return write_tiff(tmp_path / "in" / "case-7.tif", stained(rng, mask), factors=(4,))


SMALL = ExtractSettings(tile=64, batch=10)


def test_each_row_is_its_tile(slide, tmp_path):
    seen = []
    record = extract_slide(
        slide, tmp_path / "out", MeanColour(), SMALL, name="case-7", progress=lambda *n: seen.append(n)
    )
    features, coords, about, own = bag(tmp_path / "out" / "case-7.h5")
    assert (record.tiles, record.bad_tiles, record.is_new) == (len(features), 0, True)
    with open_slide(slide) as opened:
        grid = tile_grid(opened, find_tissue(read_overview(opened)), size=64)
        np.testing.assert_array_equal(coords, grid.coords)
        wanted = np.stack([tile.pixels.mean(axis=(0, 1)) for tile in read_tiles(opened, grid)])
    np.testing.assert_allclose(features[:, :3], wanted, rtol=1e-6)
    assert set(features[: -(len(features) % 10), 3]) == {10}
    assert (about["patch_size"], about["patch_size_level0"], about["step_level0"], about["mpp"]) == (64, 64, 64, 0.5)
    assert (about["level0_magnification"], about["target_magnification"], own["encoder"]) == (20, 20, "mean-colour")
    assert seen[0] == (0, len(grid))
    assert seen[-1] == (len(grid), len(grid))
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        "case-7.h5",
        "case-7.json",
        "case-7.png",
        "qc",
    ]
    assert record.about["qc"]["tissue_mm2"] == pytest.approx(np.pi * 0.2 * 0.25, rel=0.05)


def test_the_pyramid_and_the_resolution_of_the_slide_do_not_matter(tmp_path, rng):
    # Half the resolution: the same tissue, the same place in microns, about the same colours.
    mask = ellipse(1024, 1024, 512, 512, 400, 400)
    image = stained(rng, mask)
    paths = {
        0.25: write_svs(tmp_path / "fine.svs", image.repeat(2, axis=0).repeat(2, axis=1), 0.25, factors=(4,)),
        0.5: write_tiff(tmp_path / "coarse.tif", image),
    }
    found = {}
    for mpp, path in paths.items():
        extract_slide(path, tmp_path / "out", MeanColour(), SMALL, name=path.stem)
        features, coords, about, _ = bag(tmp_path / "out" / f"{path.stem}.h5")
        assert about["patch_size_level0"] == 64 * 0.5 / mpp
        found[mpp] = {tuple(corner): row for corner, row in zip(coords * mpp, features, strict=True)}
    both = found[0.25].keys() & found[0.5].keys()
    assert len(both) >= 0.9 * len(found[0.5])
    # JPEG, and a resampling by 2.
    assert max(np.abs(found[0.25][key][:3] - found[0.5][key][:3]).max() for key in both) < 4


def test_a_finished_bag_is_not_made_again_and_another_is_refused(slide, tmp_path):
    out = tmp_path / "out"
    extract_slide(slide, out, MeanColour(), SMALL, name="a")
    before = (out / "a.h5").read_bytes(), (out / "a.h5").stat().st_mtime_ns
    again = extract_slide(slide, out, MeanColour(), SMALL, name="a")
    assert (again.is_new, again.tiles) == (False, len(bag(out / "a.h5")[0]))
    for settings in (ExtractSettings(tile=128), ExtractSettings(tile=64, batch=10, stain="macenko")):
        with pytest.raises(OutputError, match="there already .found another slide, encoder or settings.*--overwrite"):
            extract_slide(slide, out, MeanColour(), settings, name="a")
    with pytest.raises(OutputError, match="there already"):
        extract_slide(slide, out, load_encoder("hed-texture"), SMALL, name="a")
    assert ((out / "a.h5").read_bytes(), (out / "a.h5").stat().st_mtime_ns) == before
    extract_slide(slide, out, MeanColour(), ExtractSettings(tile=128), name="a", overwrite=True)
    assert bag(out / "a.h5")[2]["patch_size"] == 128
    (out / "qc" / "a.json").unlink()
    with pytest.raises(OutputError, match="no record of how it was made"):
        extract_slide(slide, out, MeanColour(), ExtractSettings(tile=128), name="a")


def test_no_tissue_is_an_error_with_a_picture_and_no_bag(tmp_path, rng):
    blank = write_tiff(tmp_path / "a.tif", np.clip(rng.normal(244, 3, (600, 600, 3)), 0, 255).astype(np.uint8))
    with pytest.raises(InputError, match="no tissue was found"):
        extract_slide(blank, tmp_path / "out", MeanColour(), name="a")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["qc", "a.png"]


def test_unreadable_tiles_have_no_row_and_are_counted(slide, tmp_path, rng):
    path = write_tiff(tmp_path / "b.tif", stained(rng, np.ones((1024, 1024), bool)), compression="jpeg", factors=(4,))
    break_tile(path, 27)
    settings = ExtractSettings(tile=64, batch=10, max_bad_share=0.1)
    record = extract_slide(path, tmp_path / "out", MeanColour(), settings, name="b")
    features, coords, _, _ = bag(tmp_path / "out" / "b.h5")
    assert record.bad_tiles == 4
    assert len(features) == record.tiles == 256 - record.bad_tiles
    inside = ((coords // 128) == (27 % 8, 27 // 8)).all(axis=1)
    assert not inside.any()
    with pytest.raises(
        FormatError, match=r"too many tiles cannot be read \(found \d of the first \d+, wanted at most 1% of 256\)"
    ):
        extract_slide(path, tmp_path / "out2", MeanColour(), ExtractSettings(tile=64, max_bad_share=0.01), name="b")
    assert not (tmp_path / "out2" / "b.h5").exists()


@pytest.mark.parametrize("stain", ["macenko", "reinhard"])
def test_stains_are_normalised_before_the_encoder(tmp_path, rng, stain):
    # One tissue through two scanners: a paler and redder one, and the first.
    mask = ellipse(700, 700, 350, 350, 300, 300)
    image = stained(rng, mask)
    other = np.rint(255 * (image / 255.0) ** (0.75, 0.9, 0.7)).astype(np.uint8)
    colours = {}
    for name, pixels in (("one", image), ("other", other)):
        path = write_tiff(tmp_path / f"{name}.tif", pixels)
        for method in (None, stain):
            out = tmp_path / str(method)
            extract_slide(path, out, MeanColour(), ExtractSettings(tile=64, stain=method, min_tissue=0.9), name=name)
            colours[name, method] = bag(out / f"{name}.h5")[0][:, :3].mean(axis=0)
    before, after = (np.abs(colours["one", method] - colours["other", method]).mean() for method in (None, stain))
    assert after < 0.35 * before


# Imports once, then forks a child a line of its input, which dies where it is told.
RUNNER = """
import json, os, signal, sys
from pathlib import Path
from medseq.inference import extract
from medseq.inference.encoders import load_encoder
from medseq.inference.extract_settings import ExtractSettings
from medseq.io import bag_write
import h5py, skimage.feature, scipy.ndimage, tifffile, onnxruntime

def dying(call, number, after):
    left = [number]
    def wrapped(*args, **keywords):
        left[0] -= 1
        if left[0] == 0:
            if after:
                call(*args, **keywords)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **keywords)
    return wrapped

POINTS = {
    "append": (bag_write.BagWriter, "append"), "record": (extract, "write_text"),
    "publish": (bag_write, "publish"), "discard": (bag_write, "discard"),
}

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        if order["point"]:
            owner, name = POINTS[order["point"]]
            setattr(owner, name, dying(getattr(owner, name), order["number"], order["after"]))
        encoder = load_encoder(order["encoder"])
        settings = ExtractSettings(tile=64, batch=16)
        extract.extract_slide(Path(order["slide"]), Path(order["out"]), encoder, settings, name="a")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runner")
    (folder / "runner.py").write_text(RUNNER)
    with (folder / "stderr").open("w") as log:
        command = [sys.executable, "-W", "ignore", str(folder / "runner.py")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def order(slide, out, encoder, point=None, number=1, after=False):
        words = {
            "slide": str(slide),
            "out": str(out),
            "encoder": str(encoder),
            "point": point,
            "number": number,
            "after": after,
        }
        process.stdin.write(json.dumps(words) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        return int(answer) if answer else pytest.fail((folder / "stderr").read_text())

    yield order
    process.stdin.close()
    process.stdout.close()
    process.wait(30)


@pytest.fixture(scope="module")
def large(tmp_path_factory, runner):
    """A slide of 552 tiles of 64 pixels, one piece of which cannot be read, a network, and an undisturbed run."""
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    folder = tmp_path_factory.mktemp("large")
    image = stained(rng, np.ones((1536, 1472), bool))
    path = write_tiff(folder / "a.tif", image, compression="jpeg", factors=(8,))
    break_tile(path, 40)
    network = write_network(folder / "a.onnx", rng.normal(size=(24, 3, 3, 3)))
    assert runner(path, folder / "calm", network) == 0
    return path, network, folder / "calm"


POINTS = [
    ("append", 5, False),
    ("append", 20, True),
    ("record", 1, False),
    ("publish", 1, False),
    ("discard", 1, False),
]


@pytest.mark.parametrize(("point", "number", "after"), POINTS, ids=[f"{p} {n}{' after' * a}" for p, n, a in POINTS])
def test_a_killed_extraction_continues_to_the_same_bytes(large, runner, tmp_path, point, number, after):
    slide, network, calm = large
    out = tmp_path / "killed"
    assert runner(slide, out, network, point, number, after) == -signal.SIGKILL
    assert runner(slide, out, network) == 0
    features = bag(out / "a.h5")[0]
    assert len(features) > 512
    np.testing.assert_array_equal(features, bag(calm / "a.h5")[0])
    assert (out / "a.h5").read_bytes() == (calm / "a.h5").read_bytes()
    records = [json.loads((folder / "qc" / "a.json").read_text()) for folder in (calm, out)]
    assert records[0] == records[1]
    assert records[0]["bad_tiles"] > 0
    assert not list(out.glob("*.part")), "nothing is left over"


def test_work_is_not_repeated_after_a_kill(large, runner, tmp_path, monkeypatch):
    slide, network, _ = large
    assert runner(slide, tmp_path, network, "append", 20, True) == -signal.SIGKILL
    seen = []
    encoder = load_encoder(str(network))
    plain = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda tiles: seen.append(len(tiles)) or plain(tiles))
    record = extract_slide(slide, tmp_path, encoder, ExtractSettings(tile=64, batch=16), name="a")
    # 35 batches, 20 of them done.
    assert len(seen) == 15
    assert sum(seen) < record.tiles / 2


def test_a_kill_at_any_moment_with_the_built_in_encoder(slide, tmp_path, seed):
    code = (
        "import sys; from pathlib import Path; from medseq.inference.extract import extract_slide\n"
        "from medseq.inference.encoders import load_encoder as load\n"
        "from medseq.inference.extract_settings import ExtractSettings as Settings\n"
        "slide, out = map(Path, sys.argv[1:])\n"
        "extract_slide(slide, out, load('hed-texture'), Settings(tile=64), name='a')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(slide), str(tmp_path / "killed")])
    part = tmp_path / "killed" / "a.h5.part"
    rows = int(np.random.default_rng(seed).integers(1, 100)) * 96 * 4
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if part.exists() and part.stat().st_size > rows:
            process.kill()
            break
        time.sleep(0.005)
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "a.h5").exists()
    encoder, settings = load_encoder("hed-texture"), ExtractSettings(tile=64)
    for name in ("killed", "calm"):
        extract_slide(slide, tmp_path / name, encoder, settings, name="a")
    assert (tmp_path / "killed" / "a.h5").read_bytes() == (tmp_path / "calm" / "a.h5").read_bytes()


class TestFolder:
    def test_one_bad_slide_does_not_stop_the_others(self, slide, tmp_path, rng, capfd):
        folder = slide.parent
        blank = np.full((300, 300, 3), 244, np.uint8)
        write_tiff(folder / "JANE_blank.tif", blank)
        write_tiff(folder / "JANE_unknown.tif", blank, None)
        (folder / "JANE_broken.svs").write_bytes(b"no slide")
        write_svs(folder / "sub" / "z.svs", stained(rng, np.ones((600, 600), bool)))
        seen = []
        summary = extract_folder(
            folder, tmp_path / "out", MeanColour(), SMALL, progress=lambda *words: seen.append(words)
        )
        assert summary.exit_code == 3
        assert summary.counts == {"done": 2, "failed": 3}
        states = {outcome.name: (outcome.state, outcome.reason_code) for outcome in summary.outcomes}
        assert states == {
            "JANE_blank": ("failed", "input"),
            "JANE_broken": ("failed", "format"),
            "JANE_unknown": ("failed", "input"),
            "case-7": ("done", None),
            "z": ("done", None),
        }
        reasons = " ".join(outcome.reason or "" for outcome in summary.outcomes)
        assert "JANE" not in reasons + str(capfd.readouterr())
        assert "--mpp" in reasons
        assert seen[-1][2] == "slide 5 of 5"
        written = json.loads((tmp_path / "out" / "extract.json").read_text())
        assert [row["state"] for row in written["outcomes"]] == ["failed", "failed", "failed", "done", "done"]
        assert written["research_use_only"] is True
        assert (tmp_path / "out" / "qc" / "JANE_blank.png").exists()
        again = extract_folder(folder, tmp_path / "out", MeanColour(), SMALL)
        assert [outcome.is_new for outcome in again.outcomes if outcome.state == "done"] == [False, False]

    def test_names(self, slide, tmp_path, rng):
        write_tiff(slide.parent / "sub" / slide.name, stained(rng, np.ones((600, 600), bool)))
        summary = extract_folder(slide.parent, tmp_path / "out", MeanColour(), SMALL)
        assert [outcome.state for outcome in summary.outcomes] == ["failed", "failed"]
        assert "several slides have the same name" in summary.outcomes[0].reason
        by_id = extract_folder(slide.parent, tmp_path / "ids", MeanColour(), SMALL, names="id")
        assert by_id.exit_code == 0
        names = {path.stem for path in (tmp_path / "ids").glob("*.h5")}
        assert len(names) == 2
        assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)
        assert "case-7" not in (tmp_path / "ids" / "extract.json").read_text()

    def test_mistakes_are_refused_before_work(self, slide, tmp_path):
        assert extract_folder(tmp_path / "in" / "..", tmp_path.parent / "elsewhere", MeanColour(), SMALL).exit_code == 0
        with pytest.raises(InputError, match="no such file or folder"):
            extract_folder(tmp_path / "none", tmp_path / "out", MeanColour())
        with pytest.raises(OutputError, match="inside the input"):
            extract_folder(slide.parent, slide.parent / "out", MeanColour())
        (tmp_path / "empty").mkdir()
        assert extract_folder(tmp_path / "empty", tmp_path / "out", MeanColour()).exit_code == 2
        with pytest.raises(InputError, match="no such stain normalisation"):
            ExtractSettings(stain="vahadane")

    def test_an_encoder_for_other_tiles_says_which(self, slide, tmp_path):
        encoder = MeanColour()
        encoder.info = EncoderInfo("fixed", "onnx", 4, mpp=0.25, tile_size=224)
        with pytest.raises(InputError, match="fixed: tiles do not fit the encoder .*use --tile 224"):
            extract_folder(slide, tmp_path / "out", encoder)
        summary = extract_folder(slide, tmp_path / "out", encoder, ExtractSettings(tile=224))
        assert summary.outcomes[0].remarks == ("the encoder was made for 0.25 um/px, the tiles have 0.5",)


def test_the_real_slide_becomes_a_bag(tmp_path):
    record = extract_slide(
        real_svs(), tmp_path, load_encoder("hed-texture"), ExtractSettings(stain="macenko"), name="cmu"
    )
    features, coords, about, own = bag(record.bag)
    assert features.shape == (record.tiles, 96)
    assert 35 <= record.tiles <= 50
    assert np.isfinite(features).all()
    assert features.std(axis=0).min() > 0
    assert (about["patch_size_level0"], about["level0_mpp"], own["encoder"]) == (257, 0.499, "hed-texture")
    assert (coords % 257 == 0).all()
