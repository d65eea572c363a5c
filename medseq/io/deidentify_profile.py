"""What DICOM's confidentiality profile says of an attribute, and what medseq does with those it does not name.

The table of PS3.15 is dicom-anonymizer's. It names identifying attributes; every other text is kept only if its
attribute is one that scanners fill from a technical vocabulary (`TECHNICAL`).

Reference:
    DICOM PS3.15 table E.1-1 (basic application level confidentiality profile and its options).
"""

from functools import cache

from pydicom.datadict import dictionary_has_tag
from pydicom.tag import BaseTag

__all__ = ["KEPT_BYTES", "TECHNICAL", "action"]

_DATABASES = ("dicomfields_2026c", "dicomfields_2024b", "dicomfields_2023")
# Where the standard leaves the choice to the object class, the value is replaced rather than removed: what a class
# requires stays there, and what it does not require does no harm.
_CATEGORIES = {
    "X_TAGS": "X",
    "Z_TAGS": "Z",
    "D_TAGS": "D",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z",
    "X_Z_TAGS": "Z",
    "X_D_TAGS": "D",
    "X_Z_D_TAGS": "D",
    "X_Z_U_STAR_TAGS": "C",
}
# Of the profile's "may be kept" options.
_OPTIONS = {
    "characteristics": "PatientSex PatientAge PatientSize PatientWeight".split(),
    "device": """
        StationName DeviceSerialNumber DeviceUID GantryID DetectorID PlateID CassetteID XRaySourceID XRayDetectorID
        ManufacturerDeviceIdentifier
    """.split(),
}
TECHNICAL = frozenset(
    """
    Manufacturer ManufacturerModelName SoftwareVersions ConvolutionKernel SequenceName PulseSequenceName RescaleType
    CodeValue CodeMeaning CodingSchemeDesignator CodingSchemeVersion LongCodeValue WindowCenterWidthExplanation
    FilterType FilterMaterial ReceiveCoilName TransmitCoilName ImagedNucleus ModalityLUTType LUTExplanation
    ReconstructionMethod AttenuationCorrectionMethod ScatterCorrectionMethod Radiopharmaceutical CollimatorGridName
    OpticalPathIdentifier OpticalPathDescription SegmentLabel SegmentAlgorithmName LUTLabel ImageFilterDescription
    QuantityDefinitionDescription DimensionDescriptionLabel StackID ReconstructionAlgorithm
    """.split()
)
KEPT_BYTES = frozenset(
    """
    PixelData FloatPixelData DoubleFloatPixelData LUTData ExtendedOffsetTable ExtendedOffsetTableLengths
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData PixelPaddingValue PixelPaddingRangeLimit TriangleStripSequence
    """.split()
)


def action(tag: BaseTag, keyword: str, keep: frozenset[str]) -> str:
    """One of X (remove), Z (empty), D (dummy value), U (new UID), C (clean inside), K (keep), ? (not in the table)."""
    if any(keyword in _OPTIONS[option] for option in keep & _OPTIONS.keys()):
        return "K"
    # Private data, overlays, curves, and what pydicom's dictionary does not know.
    if tag.is_private or tag.group & 0xFF01 in (0x5000, 0x6000) or not dictionary_has_tag(tag):
        return "X"
    return _table().get((tag.group, tag.element), "?")


@cache
def _table() -> dict[tuple[int, int], str]:
    from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

    for name in _DATABASES:
        try:
            database = dicom_anonymization_database_selector(name)
        except ValueError:
            continue
        return {
            (tag[0], tag[1]): letter
            for category, letter in _CATEGORIES.items()
            for tag in database[category]
            if len(tag) == 2
        }
    raise RuntimeError("dicom-anonymizer has none of its tables")
