"""Files with planted identifiers: in every text attribute of DICOM, private data, sequences, headers and labels."""

import gzip
import struct
from pathlib import Path

import h5py
import nibabel
import numpy as np
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

from tests.io.synthetic import image, save

# Parts of one patient's identity; none may survive in any case or encoding used here.
NAME, ID, DOCTOR, BIRTH, ACCESSION = "Plantedname^Zaphod", "QX-774411", "Doktorov^Planta", "19450607", "ACC998877"
MARKS = ("plantedname", "zaphod", "qx-774411", "doktorov", "planta", "acc998877")
TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
MRD = f"""<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientName>{NAME}</patientName><patientID>{ID}</patientID>
<patientBirthdate>1945-06-07</patientBirthdate></subjectInformation>
<studyInformation><studyDate>2020-01-02</studyDate><studyID>{ACCESSION}</studyID>
<referringPhysicianName>{DOCTOR}</referringPhysicianName><studyInstanceUID>1.2.3.4.5</studyInstanceUID>
<studyDescription>for {NAME}</studyDescription></studyInformation>
<measurementInformation><protocolName>{NAME} T1</protocolName><patientPosition>HFS</patientPosition>
</measurementInformation>
<acquisitionSystemInformation><systemVendor>Maker</systemVendor><institutionName>Planta Clinic</institutionName>
</acquisitionSystemInformation>
<encoding><encodedSpace><matrixSize><x>8</x><y>8</y><z>1</z></matrixSize>
<fieldOfView_mm><x>80</x><y>80</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>8</x><y>8</y><z>1</z></matrixSize>
<fieldOfView_mm><x>80</x><y>80</y><z>5</z></fieldOfView_mm></reconSpace>
<trajectory>cartesian</trajectory></encoding>
<userParameters><userParameterString><name>who</name><value>{NAME}</value></userParameterString>
<userParameterLong><name>Zaphod</name><value>3</value></userParameterLong></userParameters>
</ismrmrdHeader>"""


def planted(vr: str) -> str:
    """An identifier in a form that an attribute of this VR can hold, or text where it should not be."""
    return {
        "CS": "PLANTEDNAME",
        "AE": "PLANTEDNAME",
        "SH": "Zaphod QX",
        "UI": "1.2.3.774411",
        "UR": f"http://{ID}.x",
    }.get(vr, f"seen {NAME} {ID}")


def full_dataset(rng: np.random.Generator) -> Dataset:
    """A CT image with every text attribute of the dictionary set, at the top and inside a sequence."""
    ds = image("CT", rng.integers(0, 900, (8, 8), dtype="i2"), (0, 0, 0), (1, 0, 0, 0, 1, 0))
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = NAME, ID, BIRTH
    ds.ReferringPhysicianName, ds.AccessionNumber = DOCTOR, ACCESSION
    skip = {0x00080005, 0x00080016, 0x00080018}
    item = Dataset()
    for tag in map(Tag, DicomDictionary):
        vr = dictionary_VR(tag)
        if vr not in ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT") or tag.group in (0, 2) or tag in skip:
            continue
        if tag not in ds:
            ds.add_new(tag, vr, planted(vr))
        item.add_new(tag, vr, planted(vr))
    nested = Dataset()
    nested.PatientName = nested.CodeMeaning = NAME
    item.ReferencedImageSequence = [nested]
    # One that the profile removes, one that it cleans, one that it does not know.
    ds.RequestAttributesSequence = [item]
    ds.ReferencedImageSequence = [item]
    ds.DerivationCodeSequence = [item]
    block = ds.private_block(0x0011, "PLANTEDNAME PRIVATE", create=True)
    block.add_new(0x01, "UT", NAME)
    block.add_new(0x02, "OB", NAME.encode() + b" ")
    ds.add_new(0x60000022, "LO", NAME)
    ds.add_new(0x60003000, "OW", NAME.encode())
    ds.file_meta.SourceApplicationEntityTitle = "PLANTEDNAME"
    ds.file_meta.PrivateInformationCreatorUID = "1.2.3"
    ds.file_meta.PrivateInformation = NAME.encode()
    ds.preamble = NAME.encode().ljust(128, b"\0")
    ds.BodyPartExamined, ds.BurnedInAnnotation, ds.ImageType = "HEAD", "NO", ["ORIGINAL", "PRIMARY", "AXIAL"]
    for keyword in ("ConversionType", "RecognizableVisualFeatures"):
        del ds[keyword]
    return ds


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def with_comment(data: bytes, text: bytes) -> bytes:
    """A JPEG with a comment and an application segment after its start, and a tail behind its end."""
    return data[:2] + jpeg_segment(0xFE, text) + jpeg_segment(0xE1, b"Exif\0\0" + text) + data[2:] + text


def compressed(rng: np.random.Generator, kind: str) -> Dataset:
    """A CT image in JPEG or JPEG 2000 whose codestream holds a comment."""
    ds = image("CT", rng.integers(0, 255, (64, 64), dtype="u1"), (0, 0, 0), (1, 0, 0, 0, 1, 0))
    ds.PatientName, ds.PatientID = NAME, ID
    if kind == "jpeg":
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        frame = with_comment(jpeg(rng.integers(0, 255, (64, 64), dtype="u1")), NAME.encode())
    else:
        ds.compress(JPEG2000Lossless)
        from pydicom.encaps import generate_frames

        frame = next(generate_frames(ds.PixelData, number_of_frames=1))
        size = 2 + 2 + int.from_bytes(frame[4:6], "big")
        body = b"\0\1" + NAME.encode()
        frame = frame[:size] + jpeg_segment(0x64, body) + frame[size:]
    ds.PixelData = encapsulate([frame + bytes(len(frame) % 2)])
    ds["PixelData"].is_undefined_length = True
    return ds


def jpeg(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def nifti(path: Path, rng: np.random.Generator) -> np.ndarray:
    """A NIfTI with texts in all header fields, an extension, slack before and after the voxels."""
    voxels = rng.integers(-500, 500, (5, 6, 7), dtype="i2")
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    picture = nibabel.Nifti1Image(voxels, affine)
    header = picture.header
    header["descrip"], header["aux_file"], header["db_name"] = NAME, ID, "zaphod"
    header["intent_name"], header["data_type"] = DOCTOR[:15], "planta"
    header.set_slope_inter(1, 0)
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode()))
    data = picture.to_bytes() + NAME.encode()
    with open(path, "wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=file) as stream:
                stream.write(data)
        else:
            file.write(data)
    return voxels


def fastmri(path: Path, rng: np.random.Generator) -> np.ndarray:
    kspace = (rng.normal(size=(2, 3, 8, 8)) + 1j * rng.normal(size=(2, 3, 8, 8))).astype("c8")
    with h5py.File(path, "w", userblock_size=512) as file:
        file["kspace"], file["ismrmrd_header"] = kspace, MRD
        file["kspace"].attrs["operator"] = DOCTOR
        file[f"notes_{ID}"], file["comment"] = np.arange(3), NAME
        file["data"] = np.frombuffer(NAME.encode(), "u1")
        file.attrs.update({"patient_id": ID, "acquisition": "AXT1", "max": 3.5, "who": NAME, ID: 1.0})
        file["outside"] = h5py.ExternalLink("/etc/hostname", "/x")
    with open(path, "r+b") as file:
        file.write(NAME.encode())
    return kspace


def svs(path: Path, rng: np.random.Generator, *, big: bool = False, order: str = "<") -> np.ndarray:
    """An Aperio-like slide: two tiled JPEG levels with comments inside, a thumbnail, a label and a macro."""
    import tifffile

    level = rng.integers(0, 255, (64, 64, 3), dtype="u1")
    head = (
        f"Aperio Image Library v1\r\n64x64 [0,0 64x64] (32x32) JPEG/RGB Q=90|AppMag = 20|User = {NAME}"
        f"|MPP = 0.5|ScanScope ID = {ID}"
    )

    def tiles(picture):
        for y in range(0, picture.shape[0], 32):
            for x in range(0, picture.shape[1], 32):
                yield with_comment(jpeg(picture[y : y + 32, x : x + 32]), NAME.encode())

    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as out:
        same = {"photometric": "rgb", "metadata": None}
        tag = [(65000, 2, None, NAME, True), (306, 2, None, "2020:01:02 10:11:12", True), (315, 2, None, NAME, True)]
        for picture in (level, level[::2, ::2]):
            out.write(
                tiles(picture),
                shape=picture.shape,
                dtype="u1",
                tile=(32, 32),
                compression="jpeg",
                description=head,
                extratags=tag,
                software=NAME,
                **same,
            )
            if picture is level:
                out.write(level[::4, ::4], description=f"Aperio thumbnail {NAME}", rowsperstrip=16, **same)
        out.write(
            np.full((20, 30, 3), 7, "u1"),
            description=f"Aperio\r\nlabel 30x20 {NAME}",
            subfiletype=1,
            rowsperstrip=20,
            **same,
        )
        out.write(
            np.full((20, 30, 3), 9, "u1"),
            description=f"Aperio\r\nmacro 30x20 {NAME}",
            subfiletype=9,
            tile=(32, 32),
            **same,
        )
    return level


def bart(path: Path, rng: np.random.Generator) -> np.ndarray:
    array = (rng.normal(size=(4, 5)) + 1j * rng.normal(size=(4, 5))).astype("c8")
    path.with_suffix(".cfl").write_bytes(array.tobytes())
    path.with_suffix(".hdr").write_text(f"# Dimensions\n5 4 1\n# Command\nfft /data/{NAME}\n# Files\n >{ID}\n")
    return array


def corpus(root: Path, rng: np.random.Generator) -> Path:
    """One folder of all of them, under names that hold the patient's."""
    folder = root / f"{NAME}_{ID}"
    folder.mkdir(parents=True)
    stem = folder / NAME
    full_dataset(rng).save_as(f"{stem}.dcm", enforce_file_format=True)
    for kind in ("jpeg", "j2k"):
        compressed(rng, kind).save_as(f"{stem}_{kind}.dcm", enforce_file_format=True)
    save([image("MR", rng.integers(0, 900, (8, 8), dtype="i2"), (0, 0, 0), (1, 0, 0, 0, 1, 0))], folder)
    nifti(Path(f"{stem}.nii.gz"), rng)
    nifti(Path(f"{stem}.nii"), rng)
    fastmri(Path(f"{stem}.h5"), rng)
    svs(Path(f"{stem}.svs"), rng)
    bart(Path(f"{stem}_scan"), rng)
    np.save(f"{stem}.npy", rng.normal(size=(3, 4)))
    with open(f"{stem}.npy", "ab") as file:
        file.write(NAME.encode())
    (folder / f"{ID}.txt").write_text(NAME)
    (folder / f"{ID}.ndpi").write_bytes(struct.pack("<2sHI", b"II", 42, 8) + NAME.encode())
    return folder
