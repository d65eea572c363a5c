"""Raw data of a known object, written in the formats that medseq reads."""

import numpy as np

XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth>
</acquisitionSystemInformation>
<encoding>
<encodedSpace><matrixSize><x>{ex}</x><y>{ey}</y><z>{ez}</z></matrixSize>
<fieldOfView_mm><x>{fx}</x><y>{fy}</y><z>{fz}</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{rx}</x><y>{ry}</y><z>{rz}</z></matrixSize>
<fieldOfView_mm><x>{gx}</x><y>{gy}</y><z>{gz}</z></fieldOfView_mm></reconSpace>
<encodingLimits>{limits}</encodingLimits>
<trajectory>{trajectory}</trajectory>{parallel}
</encoding></ismrmrdHeader>"""
LIMIT = "<{name}><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center></{name}>"


def header_xml(encoded, recon, fov, recon_fov, *, limits=None, trajectory="cartesian", parallel="", bandwidth=1.0):
    """An ISMRMRD header; sizes and fields of view are (x, y, z), limits {name: (maximum, center)}."""
    numbers = {}
    for prefix, values in (("e", encoded), ("r", recon), ("f", fov), ("g", recon_fov)):
        numbers |= {prefix + axis: value for axis, value in zip("xyz", values, strict=True)}
    text = "".join(LIMIT.format(name=name, maximum=m, center=c) for name, (m, c) in (limits or {}).items())
    if parallel:
        parallel = (
            "<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>"
            "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
            f"<calibrationMode>{parallel}</calibrationMode></parallelImaging>"
        )
    return XML.format(limits=text, trajectory=trajectory, parallel=parallel, bandwidth=bandwidth, **numbers)


def head_images(rng, coils, rows, cols):
    """Smooth coil images of an off-centre ellipse surrounded by air: ``(coil, row, col)`` complex64."""
    y, x = np.mgrid[:rows, :cols]
    y, x = (y - rows // 2) / rows, (x - cols // 2) / cols
    inside = ((x + 0.03) ** 2 / 0.3**2 + (y - 0.02) ** 2 / 0.35**2) < 1
    image = inside * (1 + 0.3 * np.cos(9 * x + 5 * y) + 0.05 * rng.normal(size=(rows, cols)))
    image = image * np.exp(1j * (2 * x - y + rng.uniform(0, 6)))
    angle = np.arange(coils) / coils * 2 * np.pi + rng.uniform(0, 6)
    maps = 1 / (1.2 + x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None])
    return (image * maps * np.exp(1j * angle)[:, None, None]).astype(np.complex64)


def fft2c(images):
    """Centred unitary FFT over the last two axes."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes=axes), norm="ortho"), axes=axes).astype("c8")


def ifft2c(kspace):
    """Inverse of `fft2c`."""
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


def head_kspace(rng, slices, coils, rows, cols):
    """Centred k-space ``(slice, coil, row, col)`` complex64."""
    return np.stack([fft2c(head_images(rng, coils, rows, cols)) for _ in range(slices)])


def codes(reader):
    """Codes of a reader's remarks."""
    return [notice.code for notice in reader.notices]
