"""A bag is the same in every format, stays in its file, and is refused with a reason where it cannot be right."""

import multiprocessing
import zipfile
from collections import OrderedDict

import h5py
import numpy as np
import pytest
import torch
import zarr

from medseq.errors import FormatError, InputError, RetryableError, ShapeError
from medseq.io.bag_write import BagWriter
from medseq.io.features import Bag, read_chunks, require_width
from medseq.io.features_open import open_bag, open_bags

FORMATS = ["h5", "h5-chunked", "pt", "pt-legacy", "npz", "npz-compressed", "zarr"]


def write(folder, kind, features, coords=None):
    """One bag in a format; returns its path."""
    path = folder / f"slide-7.{kind.partition('-')[0]}"
    arrays = {"features": features} | ({} if coords is None else {"coords": coords})
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                options = {"chunks": (1, array.shape[1]), "maxshape": (None, array.shape[1])} if "-" in kind else {}
                file.create_dataset(name, data=array, **options)
    elif path.suffix == ".pt":
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        content = tensors if coords is not None else tensors["features"]
        torch.save(content, path, _use_new_zipfile_serialization="legacy" not in kind)
    elif path.suffix == ".npz":
        (np.savez_compressed if "-" in kind else np.savez)(path, **arrays)
    else:
        group = zarr.create_group(str(path))
        for name, array in arrays.items():
            group.create_array(name, data=array, chunks=(7, array.shape[1]))
    return path


@pytest.fixture
def bag(rng):
    return rng.normal(size=(50, 6)).astype("f4"), rng.integers(0, 1 << 20, (50, 2))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_every_format_gives_the_same_bag(tmp_path, rng, bag, kind, dtype):
    features, coords = bag[0].astype(dtype), bag[1]
    opened = open_bag(write(tmp_path, kind, features, coords))
    # float64 is rounded to the nearest float32, as numpy does.
    expected = features.astype("f2" if dtype == "f2" else "f4")
    assert opened.features.shape == (50, 6)
    assert opened.features.dtype == expected.dtype
    assert not isinstance(opened.features, np.ndarray)
    assert np.array_equal(opened.coords, coords)
    assert (opened.slide_id, opened.patient_id) == ("slide-7", "slide-7")
    assert (opened.encoder, opened.mpp, opened.patch_size_level0) == (None, None, None)
    for index in (0, -1, slice(3, 17), slice(None, None, 3), slice(40, 90), slice(5, 5), [4, 4, 1, -2], []):
        found = opened.features[index]
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected[np.array(index, int) if isinstance(index, list) else index])
    rows = rng.permutation(50)[:20]
    assert np.array_equal(opened.features[rows], expected[rows])
    mask = rng.random(50) < 0.5
    assert np.array_equal(opened.features[mask], expected[mask])
    with pytest.raises(IndexError, match="beyond the 50"):
        opened.features[[0, 50]]
    pieces = list(read_chunks(opened, 16))
    assert [len(piece) for piece in pieces] == [16, 16, 16, 2]
    assert all(piece.dtype == np.float32 for piece in pieces)
    assert np.array_equal(np.concatenate(pieces), expected.astype("f4"))


@pytest.mark.parametrize("kind", FORMATS)
def test_bags_go_to_other_processes_closed(tmp_path, bag, kind):
    opened = open_bag(write(tmp_path, kind, bag[0]))
    assert opened.coords is None
    here, there = multiprocessing.Pipe()
    here.send(opened)
    again = there.recv()
    assert np.array_equal(np.asarray(again.features), bag[0])


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_keep_their_place_type_and_form(tmp_path, rng, legacy):
    base = torch.from_numpy(rng.normal(size=(9, 4)).astype("f4"))
    cases = {
        "part": base[3:7],
        "bfloat16": base.bfloat16(),
        "batched": base[None],
        "parameter": torch.nn.Parameter(base),
        "ordered": OrderedDict(feats=base, coords=torch.arange(18, dtype=torch.int32).view(9, 2)),
        "words": {
            "features": base,
            "encoder": "uni_v1",
            "mpp": 0.5,
            "patch_size_level0": 448,
            "n": [1, (2, None, True)],
        },
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=not legacy)
        wanted = content.get("features", content.get("feats")) if isinstance(content, dict) else content
        found = open_bag(tmp_path / f"{name}.pt")
        assert np.array_equal(np.asarray(found.features), wanted.detach().float().view(-1, 4).numpy()), name
    assert np.array_equal(open_bag(tmp_path / "ordered.pt").coords, np.arange(18).reshape(9, 2))
    assert (found.encoder, found.mpp, found.patch_size_level0) == ("uni_v1", 0.5, 448)
    torch.save(base.T, tmp_path / "turned.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError, match=r"do not lie behind each other.*stride \(1, 4\).*contiguous"):
        open_bag(tmp_path / "turned.pt")


class Opener:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pt_file_with_code_in_it_is_refused_and_not_run(tmp_path, legacy, inside):
    trap = Opener(tmp_path / "trap")
    content = {"features": torch.zeros(2, 3), "extra": trap} if inside else trap
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError, match=r"wants code to be run.*io.open.*save only the tensor"):
        open_bag(tmp_path / "a.pt")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "data", [b"\x80\x02.", b"\x80\x02}(X\x01", b"\x80\x02cos\nsystem\n.", b"\x80\x02]K\x01s.", b"\x80"]
)
def test_descriptions_that_are_damaged_are_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(FormatError, match="damaged|wants code to be run"):
        open_bag(tmp_path / "a.pt")


def test_other_archives_are_no_bags(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(FormatError, match="no 'features'"):
        open_bag(tmp_path / "a.pt")
    torch.save({"weights": torch.zeros(2, 2)}, tmp_path / "b.pt")
    with pytest.raises(FormatError, match="keys: weights"):
        open_bag(tmp_path / "b.pt")
    torch.save({"features": [1, 2]}, tmp_path / "c.pt")
    with pytest.raises(FormatError, match="no tensor of features.*found list"):
        open_bag(tmp_path / "c.pt")
    np.savez(tmp_path / "d.npz", features=np.array([{}], object))
    with pytest.raises(FormatError, match="Python objects are not read"):
        open_bag(tmp_path / "d.npz")


def attributed(path, file=None, features=None, coords=None):
    with h5py.File(path, "w") as out:
        out["features"], out["coords"] = np.ones((3, 4), "f4"), np.zeros((3, 2), "i4")
        out.attrs.update(file or {})
        out["features"].attrs.update(features or {})
        out["coords"].attrs.update(coords or {})
    return open_bag(path)


TRIDENT = {"patch_size": 512, "level0_magnification": 40, "target_magnification": 20, "overlap": 0, "name": "x"}


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"features": {"name": "x", "savetodir": "/out/20x_512px_0px_overlap/features_uni_v1"}, "coords": TRIDENT},
         ("uni_v1", 0.5, 1024)),
        ({"coords": {**TRIDENT, "patch_size_level0": 1020, "target_magnification": 10}}, (None, 1.0, 1020)),
        ({"features": {"savetodir": "D:\\out\\features_plip\\"}}, ("plip", None, None)),
        # CLAM: downsample of the level, a pair; the attributes stand on the coords.
        ({"coords": {"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0003)}}, (None, None, 1024)),
        ({"coords": {"patch_size": 256, "patch_level": 0}}, (None, None, 256)),
        ({"coords": {"patch_size": 256, "patch_level": 0, "downsample": (1.0, 1.0), "custom_downsample": 2}},
         (None, None, 512)),
        # The size at a level whose downsampling is not stored is not one at level 0.
        ({"coords": {"patch_size": 256, "patch_level": 2}}, (None, None, None)),
        ({"file": {"encoder": b"resnet50", "mpp": 0.25}, "features": {"encoder": "other"}}, ("resnet50", 0.25, None)),
        ({"coords": {"mpp": -1, "patch_size_level0": np.nan, "target_magnification": "20x"}}, (None, None, None)),
    ],
)  # fmt: skip
def test_h5_attributes_are_found_where_clam_and_trident_put_them(tmp_path, attributes, wanted):
    bag = attributed(tmp_path / "a.h5", **attributes)
    assert (bag.encoder, bag.mpp, bag.patch_size_level0) == wanted


def test_what_we_write_we_read(tmp_path, bag):
    about = {"encoder": "e", "mpp": 0.5, "patch_size_level0": 512, "slide_id": "s-1", "patient_id": "p-1"}
    writer = BagWriter(tmp_path / "a.h5", 6, **about)
    writer.append(*bag)
    found = open_bag(writer.commit())
    assert {name: getattr(found, name) for name in about} == about
    assert np.array_equal(np.asarray(found.features), bag[0])
    named = open_bag(tmp_path / "a.h5", slide_id="s-2", patient_id="p-2")
    assert (named.slide_id, named.patient_id) == ("s-2", "p-2")


def test_axes_of_one_are_dropped(tmp_path, bag):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = bag[0][None], bag[1][None].astype("f8")
    found = open_bag(tmp_path / "a.h5")
    assert np.array_equal(found.features[3:9], bag[0][3:9])
    assert np.array_equal(found.coords, bag[1])


@pytest.mark.parametrize("kind", FORMATS)
def test_bags_that_cannot_be_right_are_refused(tmp_path, bag, kind):
    features, coords = bag
    cases = [
        ({"features": features[:0]}, "no instances.*found 0 instances"),
        ({"features": features, "coords": coords[:49]}, "found 50 features, 49 coords"),
        ({"features": features, "coords": coords[:, :1]}, "coords have the wrong form"),
        ({"features": features, "coords": coords + 0.5}, "whole pixels"),
        ({"features": features[:, 0]}, r"wrong form.*found \(50,\)"),
        ({"features": features.astype("i4")}, "of this type.*found int32.*store the features as float32"),
        ({"features": features.astype("u1")}, "found uint8"),
    ]
    for number, (arrays, message) in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        if arrays["features"].ndim == 1 and kind in ("h5-chunked", "zarr"):
            continue
        with pytest.raises(FormatError, match=message):
            open_bag(write(tmp_path / str(number), kind, **arrays))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_features_that_are_no_numbers_are_refused_with_their_rows(tmp_path, bag, kind, value):
    features = bag[0].astype("f8")
    features[[20, 33], [1, 2]] = value
    opened = open_bag(write(tmp_path, kind, features))
    pieces = read_chunks(opened, 16, where="bag 3")
    assert np.array_equal(next(pieces), bag[0][:16])
    with pytest.raises(FormatError, match="bag 3: features are NaN or infinite.*1 of 16 instances read: rows 20"):
        next(pieces)


def test_the_missing_key_is_named_with_those_found(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"], file["imgs"] = np.zeros((3, 2)), np.zeros(3)
    with pytest.raises(FormatError, match="no 'features'.*keys: coords, imgs.*extract features first"):
        open_bag(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_group("features")
    with pytest.raises(FormatError, match="'features' is no dataset"):
        open_bag(tmp_path / "b.h5")


def test_data_in_other_files_are_not_followed(tmp_path, bag):
    path = write(tmp_path, "h5", bag[0])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(path), "features")
    (tmp_path / "secret").write_bytes(bytes(96))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("features", (4, 6), "f4", external=[(str(tmp_path / "secret"), 0, 96)])
    layout = h5py.VirtualLayout((50, 6), "f4")
    layout[:] = h5py.VirtualSource(path, "features", (50, 6))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    for name in "abc":
        with pytest.raises(FormatError, match="lies in another file"):
            open_bag(tmp_path / f"{name}.h5")


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "zarr"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_file_cut_short_is_refused(tmp_path, rng, kind, share):
    path = write(tmp_path, kind, rng.normal(size=(500, 6)).astype("f4"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FormatError, match="cut short|damaged|not a bag") as raised:
        list(read_chunks(open_bag(path)))
    assert "slide-7" not in str(raised.value)


def test_zarr_with_missing_pieces_is_not_read_as_zeros(tmp_path, bag):
    path = write(tmp_path, "zarr", bag[0])
    next(file for file in (path / "features" / "c").rglob("*") if file.is_file()).unlink()
    with pytest.raises(FormatError, match="pieces of the features are missing.*7 of 8 chunks"):
        open_bag(path)
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(FormatError, match="not a zarr group|damaged"):
        open_bag(tmp_path / "b.zarr")


def test_what_is_no_bag_says_so(tmp_path):
    (tmp_path / "SMITH.h5").write_bytes(b"hello, I am a text")
    with pytest.raises(FormatError, match="not an HDF5 file") as raised:
        open_bag(tmp_path / "SMITH.h5")
    assert "SMITH" not in str(raised.value)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(FormatError, match="not a bag of features.*0 bytes"):
        open_bag(tmp_path / "a.bin")
    with pytest.raises(InputError, match="no such file"):
        open_bag(tmp_path / "b.h5")
    with pytest.raises(FormatError, match="a folder that is no zarr group.*use open_bags"):
        open_bag(tmp_path)


def test_a_file_that_goes_away_is_an_error_to_retry(tmp_path, bag):
    path = write(tmp_path, "npz", bag[0])
    opened = open_bag(path)
    path.unlink()
    with pytest.raises(RetryableError, match="cannot be read"):
        opened.features[:3]


def test_a_wrong_width_names_both_and_the_encoders(rng):
    bag = Bag(rng.normal(size=(3, 512)).astype("f4"), "s", "p", encoder="plip")
    require_width(bag, 512)
    with pytest.raises(ShapeError, match="found 512 of encoder 'plip', wanted 1024 of encoder 'resnet50'"):
        require_width(bag, 1024, encoder="resnet50")
    nameless = Bag(bag.features, "s", "p")
    with pytest.raises(ShapeError, match="512 of an encoder that the file does not name, wanted 1024 of the encoder"):
        require_width(nameless, 1024)


def test_a_folder_of_bags(tmp_path, bag):
    for kind in ("h5", "pt", "zarr"):
        write(tmp_path, kind, bag[0], bag[1])
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "more.csv").write_text("1,a,0.5\n0,b,0.25\n")
    found = open_bags(tmp_path)
    assert [bag.slide_id for bag in found] == ["a", "b", "slide-7", "slide-7", "slide-7"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no bags"):
        open_bags(tmp_path / "empty")


def test_pieces_hold_instances(rng):
    bag = Bag(rng.normal(size=(5, 2)).astype("f2"), "s", "p")
    assert [len(piece) for piece in read_chunks(bag, 2)] == [2, 2, 1]
    with pytest.raises(InputError, match="found 0"):
        next(read_chunks(bag, 0))


# Python's own reader of pickles warns of a damaged text.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("kind", ["pt", "pt-legacy", "npz", "npz-compressed"])
def test_damage_is_a_bag_or_an_error_of_ours(tmp_path, rng, kind):
    path = write(tmp_path, kind, rng.normal(size=(5, 3)).astype("f4"), np.arange(10).reshape(5, 2))
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        mutant = bytearray(whole)
        for place in rng.integers(0, len(whole), int(rng.integers(1, 4))):
            mutant[place] = rng.integers(256)
        path.write_bytes(mutant)
        try:
            list(read_chunks(open_bag(path)))
        except InputError:
            refused += 1
    assert refused
