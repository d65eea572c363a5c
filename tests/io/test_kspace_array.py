"""Plain arrays and BART pairs: axes by sidecar or by convention, read in pieces, refused with a reason."""

import json
import subprocess
import tracemalloc

import h5py
import numpy as np
import psutil
import pytest

from medseq.errors import FormatError, InputError, ShapeError
from medseq.io.kspace_bart import write_cfl
from medseq.io.kspace_fft import rss_image
from medseq.io.kspace_open import kspace_files, kspace_kind, open_kspace, open_kspace_items
from medseq.io.kspace_stored import NpzArray, open_npy
from tests.io.kspace_synthetic import codes, head_images, head_kspace

SLICES, COILS, ROWS, COLS = 3, 4, 14, 11


@pytest.fixture
def kspace(rng):
    return head_kspace(rng, SLICES, COILS, ROWS, COLS)


def save(path, array, sidecar=None, key="kspace"):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, **{key: array})
    else:
        with h5py.File(path, "w") as file:
            file[key] = array
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("order", ["slice coil row col", "row col coil slice", "coil slice col row"])
def test_axes_come_in_any_order(tmp_path, kspace, suffix, order):
    names = order.split()
    stored = kspace.transpose([("slice", "coil", "row", "col").index(name) for name in names])
    sidecar = {"axes": names, "spacing_mm": [5, 0.8, 0.6], "recon_shape": [10, 9], "phase_axis": 0, "fft": "centre"}
    reader = open_kspace(save(tmp_path / f"a{suffix}", stored, sidecar))
    assert (reader.n, reader.recon_shape, reader.phase_axis) == (SLICES, (10, 9), 0)
    assert reader.fov_mm == pytest.approx((8.0, 5.4))
    assert np.array_equal(reader.affine, np.diag([0.6, 0.8, 5, 1]))
    for i in range(SLICES):
        assert np.array_equal(reader.read(i).kspace, kspace[i])


@pytest.mark.parametrize("fortran", [False, True])
def test_numpy_files_are_read_in_pieces(tmp_path, rng, fortran, monkeypatch):
    array = rng.normal(size=(5, 3, 4, 2, 6)).astype("f4")
    stored = np.asfortranarray(array) if fortran else array
    np.save(tmp_path / "a.npy", stored)
    np.savez(tmp_path / "a.npz", kspace=stored)
    # Runs of a few numbers, so that every way of reading is used.
    for block in (1, 100, 1 << 20):
        monkeypatch.setattr("medseq.io.kspace_stored._BLOCK", block)
        for source in (open_npy(tmp_path / "a.npy"), NpzArray(tmp_path / "a.npz", "kspace")):
            for index in (
                (2, None, 1, None, 3),
                (None, None, 0, 1, None),
                (None,) * 5,
                (4, 2, 3, 1, 5),
                (1,) + (None,) * 4,
            ):
                expected = array[tuple(slice(None) if n is None else n for n in index)]
                assert np.array_equal(source.take(index), expected)


def test_echoes_parts_and_single_precision(tmp_path, rng):
    kspace = np.stack([head_kspace(rng, 2, 2, ROWS, COLS) for _ in range(3)])
    stored = np.stack([kspace.real, kspace.imag], axis=-1).astype("f2")
    path = save(tmp_path / "a.npy", stored, {"axes": ["contrast", "slice", "coil", "row", "col", "parts"]})
    readers = open_kspace_items(path)
    assert [reader.label for reader in readers] == ["contrast-0", "contrast-1", "contrast-2"]
    found = readers[2].read(1).kspace
    # float16 has 11 significant bits.
    assert np.abs(found - kspace[2, 1]).max() < 2**-11 * np.abs(kspace).max()


def test_companions_of_the_same_folder_and_of_the_same_file(tmp_path, rng, kspace):
    mask = rng.random((ROWS, COLS)) < 0.6
    mask[ROWS // 2, COLS // 2] = True
    maps = (rng.normal(size=kspace.shape) + 1j).astype("c8")
    noise = np.diag(np.arange(1, COILS + 1.0))
    for name, array in (("m.npy", mask), ("s.npy", maps), ("n.npy", noise)):
        np.save(tmp_path / name, array)
    fields = {"axes": ["slice", "coil", "row", "col"], "fft": "centre"}
    path = save(tmp_path / "a.npy", kspace, {**fields, "mask": "m.npy", "sens_maps": "s.npy", "noise_cov": "n.npy"})
    part = open_kspace(path, prewhiten=False).read(1)
    assert np.array_equal(part.mask[0], mask)
    assert np.array_equal(part.sens_maps, maps[1])
    assert np.array_equal(part.noise_cov, noise)
    white = open_kspace(path).read(1)
    scale = 1 / np.sqrt(np.diag(noise))[:, None, None]
    assert np.allclose(white.kspace, part.kspace * scale, rtol=1e-5)
    assert np.allclose(white.sens_maps, maps[1] * scale, rtol=1e-5)
    np.savez(tmp_path / "b.npz", kspace=kspace, m=mask, s=maps[0])
    (tmp_path / "b.yaml").write_text("axes: [slice, coil, row, col]\nfft: centre\nmask: m\nsens_maps: s\n")
    part = open_kspace(tmp_path / "b.npz").read(2)
    assert np.array_equal(part.mask[0], mask)
    assert np.array_equal(part.sens_maps, maps[0])
    assert [path.name for path in kspace_files(tmp_path.iterdir())] == ["a.npy", "b.npz"]


@pytest.mark.parametrize(
    ("sidecar", "pattern"),
    [
        ({"axis": []}, "fields that are not known.*axis"),
        ({"axes": ["slice", "coil", "row"]}, "'axes' has the wrong form.*row, col and some of"),
        ({"axes": ["slice", "coil", "row", "col", "map"]}, r"axes named and the array disagree.*\(3, 4, 14, 11\)"),
        ({"axes": ["slice", "parts", "row", "col"]}, "length that its name does not allow.*parts 2"),
        ({"fft": "middle"}, "'fft' has the wrong form.*centre or corner"),
        ({"spacing_mm": [1, 2, 0]}, "'spacing_mm' has the wrong form.*three positive numbers"),
        ({"affine": np.zeros((4, 4)).tolist()}, "'affine' has the wrong form.*invertible"),
        ({"mask": "../secret.npy"}, "'mask' has the wrong form"),
        ({"mask": "/etc/passwd"}, "'mask' has the wrong form"),
        ({"mask": "gone.npy"}, "file that the sidecar names is missing"),
        ({"mask": "other"}, "a .npy file holds one array"),
    ],
)
def test_sidecars_that_make_no_sense(tmp_path, kspace, sidecar, pattern):
    path = save(tmp_path / "a.npy", kspace, sidecar)
    with pytest.raises((FormatError, ShapeError), match=pattern):
        open_kspace(path)


def test_arrays_that_cannot_be_read(tmp_path, kspace):
    with pytest.raises(FormatError, match="what the axes of this array are.*axes: "):
        open_kspace(save(tmp_path / "three.npy", kspace[0]))
    assert codes(open_kspace(save(tmp_path / "four.npy", kspace))) == ["axes-guessed"]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="Python objects are not read"):
        open_kspace(tmp_path / "objects.npy")
    with pytest.raises(FormatError, match="no array 'kspace'.*arrays: other"):
        open_kspace(save(tmp_path / "key.npz", kspace, key="other"))
    with pytest.raises(FormatError, match="no dataset 'data'.*keys: kspace"):
        open_kspace(save(tmp_path / "key.h5", kspace, {"key": "data"}))
    for name in ("four.npy", "key.npz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(FormatError, match="cut short or damaged|not raw MR data"):
            open_kspace(tmp_path / name).read(2)
    bad = kspace.copy()
    bad[1, 0, 0, 0] = np.inf
    with pytest.raises(FormatError, match="slice 1: k-space holds NaN or infinite"):
        open_kspace(save(tmp_path / "inf.npy", bad)).read(1)
    with pytest.raises(InputError, match="unknown Fourier convention.*found middle"):
        open_kspace(tmp_path / "inf.npy", fft="middle")


def test_given_maps_replace_the_files_own(tmp_path, rng, kspace):
    path = save(tmp_path / "a.h5", kspace)
    maps = (rng.normal(size=kspace.shape) + 1j).astype("c8")
    np.save(tmp_path / "maps.npy", maps)
    write_cfl(tmp_path / "ecalib", maps[0].transpose(1, 2, 0)[:, :, None])
    assert np.array_equal(open_kspace(path, sens=tmp_path / "maps.npy").read(2).sens_maps, maps[2])
    assert np.array_equal(open_kspace(path, sens=tmp_path / "ecalib.cfl").read(2).sens_maps, maps[0])
    np.save(tmp_path / "fewer.npy", maps[:, :3])
    with pytest.raises(ShapeError, match=r"sensitivity maps disagree.*\(3, 14, 11\).*\(4, 14, 11\).*re-estimate"):
        open_kspace(path, sens=tmp_path / "fewer.npy").read(0)
    np.save(tmp_path / "slices.npy", maps[:2])
    with pytest.raises(ShapeError, match="maps of 2 slices.*3 slices"):
        open_kspace(path, sens=tmp_path / "slices.npy")


@pytest.mark.parametrize("singleton", [0, 1, 2, None])
def test_bart_pairs(tmp_path, rng, kspace, singleton):
    first = kspace[0].transpose(1, 2, 0)
    stored = np.expand_dims(first, 2 if singleton is None else singleton)
    write_cfl(tmp_path / "scan", stored)
    for name in ("scan.cfl", "scan.hdr", "scan"):
        reader = open_kspace(tmp_path / name)
        assert (reader.n, reader.label, reader.recon_shape) == (1, "", (ROWS, COLS))
        assert np.array_equal(reader.read(0).kspace, kspace[0])
    assert kspace_kind(tmp_path / "scan.hdr") == "bart"
    maps = (rng.normal(size=(*stored.shape, 2)) + 1j).astype("c8")
    write_cfl(tmp_path / "scan_sens", maps)
    reader = open_kspace(tmp_path / "scan.cfl")
    wanted = np.squeeze(maps[..., 0], 2 if singleton is None else singleton).transpose(2, 0, 1)
    assert np.array_equal(reader.read(0).sens_maps, wanted)
    assert codes(reader) == ["map-sets"]
    assert [path.name for path in kspace_files(tmp_path.iterdir())] == ["scan.cfl"]
    write_cfl(tmp_path / "scan_sens", maps[:, :, :, :2])
    with pytest.raises(ShapeError, match="k-space and sensitivity maps disagree"):
        open_kspace(tmp_path / "scan.cfl")


def test_bart_slices_and_echoes(tmp_path, rng):
    kspace = np.stack([head_kspace(rng, 3, 2, ROWS, COLS) for _ in range(2)])
    dims = np.zeros((ROWS, COLS, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 3), "c8")
    dims[:, :, 0, :, 0, :, 0, 0, 0, 0, 0, 0, 0] = kspace.transpose(3, 4, 2, 0, 1)
    write_cfl(tmp_path / "scan", dims)
    readers = open_kspace_items(tmp_path / "scan.cfl")
    assert [(reader.label, reader.n) for reader in readers] == [("contrast-0", 3), ("contrast-1", 3)]
    assert np.array_equal(readers[1].read(2).kspace, kspace[1, 2])


def test_bart_files_that_cannot_be_read(tmp_path, kspace):
    base = tmp_path / "scan"
    write_cfl(base, kspace[0].transpose(1, 2, 0)[:, :, None])
    data = (tmp_path / "scan.cfl").read_bytes()
    (tmp_path / "scan.cfl").write_bytes(data[:-8])
    with pytest.raises(FormatError, match=f"cut short or damaged.*{len(data) - 8} bytes.*{len(data)} bytes"):
        open_kspace(tmp_path / "scan.cfl")
    (tmp_path / "scan.hdr").write_text("nothing\n")
    with pytest.raises(FormatError, match="no usable dimensions"):
        open_kspace(tmp_path / "scan.cfl")
    (tmp_path / "scan.hdr").unlink()
    with pytest.raises(FormatError, match="half of a BART pair is missing"):
        open_kspace(tmp_path / "scan.cfl")
    write_cfl(base, np.ones((4, 5, 1, 2, 1, 1, 3), "c8"))
    with pytest.raises(ShapeError, match="dimension 6 = 3"):
        open_kspace(tmp_path / "scan.cfl")


@pytest.mark.parametrize("transpose", [False, True])
def test_barts_own_phantom(tmp_path, transpose):
    subprocess.run(["bart", "phantom", "-k", "-s", "4", "-x", "48", tmp_path / "p"], check=True, capture_output=True)
    subprocess.run(["bart", "phantom", "-S", "4", "-x", "48", tmp_path / "p_sens"], check=True, capture_output=True)
    name = "p"
    if transpose:
        for old, new in (("p", "q"), ("p_sens", "q_sens")):
            subprocess.run(["bart", "transpose", "0", "2", tmp_path / old, tmp_path / new], check=True)
        name = "q"
    reader = open_kspace(tmp_path / f"{name}.cfl")
    part = reader.read(0)
    assert codes(reader) == []
    assert part.kspace.shape == (4, 48, 48)
    subprocess.run(["bart", "fft", "-iu", "7", tmp_path / "p", tmp_path / "i"], check=True)
    wanted = np.sqrt((np.abs(open_kspace(tmp_path / "i.cfl", fft="centre").read(0).kspace) ** 2).sum(0))
    image = rss_image(part.kspace)
    # Two single-precision transforms; BART's transpose turns the image over the diagonal.
    assert np.abs(image - (wanted.T if transpose else wanted)).max() < 1e-5 * wanted.max()
    assert part.sens_maps.shape == (4, 48, 48)


@pytest.mark.parametrize("suffix", [".h5", ".npy"])
def test_ten_thousand_slices_in_little_memory(tmp_path, rng, suffix):
    n, shape = 10_000, (4, 64, 48)
    plane = head_images(rng, *shape)
    path = tmp_path / f"a{suffix}"
    # Both files have holes: they take little space although the array is 1 GB.
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            data = file.create_dataset("kspace", (n, *shape), "c8", chunks=(1, *shape))
            data[n // 2] = data[n - 1] = plane
    else:
        stored = np.lib.format.open_memmap(path, mode="w+", dtype="c8", shape=(n, *shape))
        stored[n // 2] = stored[n - 1] = plane
        del stored
    before = psutil.Process().memory_info().rss
    tracemalloc.start()
    reader = open_kspace(path)
    assert reader.n == n
    for i in (0, n // 2, *range(7, n, 500), n - 1):
        assert np.array_equal(reader.read(i).kspace, plane if i in (n // 2, n - 1) else np.zeros_like(plane))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A slice is 98 kB and its transforms a few times that; the array is ten thousand times more.
    assert n * plane.nbytes > 9e8
    assert peak < 1e7
    # What HDF5 allocates, numpy does not see; the allocator keeps some of it.
    assert psutil.Process().memory_info().rss - before < 1e8
