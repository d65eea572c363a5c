"""A volume as the bytes of a NIfTI-1 file, for viewers: voxels and affine, and nothing else of where it came from."""

import numpy as np

__all__ = ["nifti_bytes"]


def nifti_bytes(volume: np.ndarray, affine: np.ndarray) -> bytes:
    """The file, uncompressed.

    Args:
        volume: ``[slice, row, col]``; whole numbers within 16 bits are stored as such, NaN as the smallest value.
        affine: ``(col, row, slice, 1)`` to RAS mm.
    """
    import nibabel

    finite = np.isfinite(volume)
    low = float(volume[finite].min()) if finite.any() else 0.0
    filled = np.where(finite, volume, np.float32(low))
    fits = np.abs(filled).max() <= 32767 and np.array_equal(filled, np.round(filled))
    # NIfTI's order is (col, row, slice); see `medseq.io.nifti`.
    image = nibabel.Nifti1Image(filled.T.astype(np.int16 if fits else np.float32), affine)
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return content
