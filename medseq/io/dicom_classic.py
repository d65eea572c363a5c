"""One frame of an enhanced multi-frame object as a classic single-frame CT, MR or PET image.

Most viewers and archives accept single-frame series best, so that is what derived series consist of. The classic
object classes want a few attributes that the enhanced ones spell differently; this file is that dictionary.
"""

from copy import copy

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)

from medseq.errors import OutputError
from medseq.io.dicom_frames import flatten
from medseq.io.dicom_header import quiet

__all__ = ["classic_class", "to_classic"]

_CLASSIC = {
    EnhancedCTImageStorage: CTImageStorage,
    LegacyConvertedEnhancedCTImageStorage: CTImageStorage,
    EnhancedMRImageStorage: MRImageStorage,
    LegacyConvertedEnhancedMRImageStorage: MRImageStorage,
    EnhancedPETImageStorage: PositronEmissionTomographyImageStorage,
    LegacyConvertedEnhancedPETImageStorage: PositronEmissionTomographyImageStorage,
}
# Present in both worlds: copied from the frame's functional groups to the top level.
_COPIED = """
    ImageType ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices
    WindowCenter WindowWidth WindowCenterWidthExplanation VOILUTFunction RescaleSlope RescaleIntercept RescaleType
    KVP ExposureTime XRayTubeCurrent ConvolutionKernel ReconstructionDiameter GantryDetectorTilt FilterType
    DataCollectionDiameter RotationDirection EchoTime RepetitionTime FlipAngle EchoTrainLength InversionTime
    MagneticFieldStrength ImagingFrequency ImagedNucleus PixelBandwidth NumberOfAverages PercentSampling
    PercentPhaseFieldOfView InPlanePhaseEncodingDirection DiffusionBValue DiffusionGradientOrientation TriggerTime
    TemporalPositionIdentifier AcquisitionNumber
    Units CountsSource SeriesType SUVType CorrectedImage DecayCorrection RandomsCorrectionMethod
    AttenuationCorrectionMethod ScatterCorrectionMethod ReconstructionMethod CollimatorType
    RadiopharmaceuticalInformationSequence FrameReferenceTime ActualFrameDuration DecayFactor DoseCalibrationFactor
    AcquisitionDate AcquisitionTime
""".split()
# Describes the enhanced object as a whole and means nothing on one frame.
_ENHANCED_ONLY = """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionOrganizationSequence
    DimensionIndexSequence DimensionOrganizationType NumberOfFrames ConcatenationUID ConcatenationFrameOffsetNumber
    SOPInstanceUIDOfConcatenationSource InConcatenationNumber InConcatenationTotalNumber PixelPresentation
    VolumetricProperties VolumeBasedCalculationTechnique ComplexImageComponent AcquisitionContrast
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    MultienergyCTAcquisition UnassignedSharedConvertedAttributesSequence
""".split()
_EMPTY_ALLOWED = {
    CTImageStorage: ("KVP", "AcquisitionNumber", "SliceThickness", "PositionReferenceIndicator", "PatientPosition"),
    MRImageStorage: (
        *("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime", "SliceThickness"),
        *("PositionReferenceIndicator", "PatientPosition"),
    ),
    PositronEmissionTomographyImageStorage: (
        *("CorrectedImage", "CollimatorType", "RadiopharmaceuticalInformationSequence", "AcquisitionDate"),
        "ActualFrameDuration",
        *("AcquisitionTime", "SliceThickness", "PositionReferenceIndicator", "PatientPosition"),
    ),
}
# Type 1 of a PET image: an object that does not say them cannot become one.
_PET_NEEDS = ("Units", "CountsSource", "SeriesType", "DecayCorrection", "FrameReferenceTime")


def classic_class(uid: str) -> UID:
    """The single-frame object class for images of this class.

    Raises:
        OutputError: There is none that medseq writes.
    """
    if uid not in _CLASSIC:
        with quiet():
            name = UID(uid).name
        raise OutputError(
            "no single-frame DICOM class for frames of this object",
            found=name,
            wanted="enhanced CT, MR or PET",
            remedy="write NIfTI instead",
        )
    return _CLASSIC[UID(uid)]


def to_classic(dataset: Dataset, index: int) -> Dataset:
    """A new data set: the top-level attributes of the object and those of frame `index`, in the flat classic form."""
    kind = classic_class(dataset.SOPClassUID)
    out = Dataset()
    out.file_meta = dataset.file_meta
    for element in dataset:
        if element.keyword not in _ENHANCED_ONLY:
            # A copy: assigning a value to an element changes it in place, and the source serves the next frame too.
            out[element.tag] = copy(element)
    groups = flatten(dataset, index)
    for keyword in _COPIED:
        if groups.get(keyword) not in (None, ""):
            setattr(out, keyword, groups.get(keyword))
    out.SOPClassUID = kind
    if kind == MRImageStorage:
        _name_sequence(out, groups)
        if "ImagedNucleus" not in out and dataset.get("ResonantNucleus"):
            out.ImagedNucleus = dataset.ResonantNucleus
    if kind == PositronEmissionTomographyImageStorage:
        _require_pet(out)
        out.NumberOfSlices, out.ImageIndex = int(dataset.NumberOfFrames), index + 1
    # Without a body part nobody can tell whether it is a paired one: unknown, not absent.
    paired = () if out.get("BodyPartExamined") else ("Laterality",)
    for keyword in (*_EMPTY_ALLOWED[kind], *paired):
        if keyword not in out:
            setattr(out, keyword, None)
    return out


def _require_pet(out: Dataset) -> None:
    missing = [keyword for keyword in _PET_NEEDS if keyword not in out]
    if missing:
        raise OutputError(
            "the object does not say what a single-frame PET image must say",
            found=f"without {', '.join(missing)}",
            remedy="write NIfTI instead",
        )


def _name_sequence(out: Dataset, groups: Dataset) -> None:
    """ScanningSequence and SequenceVariant, which MR images must have, from the enhanced description."""

    def get(keyword: str) -> str:
        return str(groups.get(keyword) or out.get(keyword) or "")

    if not out.get("ScanningSequence"):
        names = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}.get(get("EchoPulseSequence"), ["RM"])
        names += ["EP"] if get("EchoPlanarPulseSequence") == "YES" else []
        names += ["IR"] if get("InversionRecovery") == "YES" else []
        out.ScanningSequence = names
    if not out.get("SequenceVariant"):
        rules = (
            ("SegmentedKSpaceTraversal", ("", "SINGLE"), "SK"),
            ("MagnetizationTransfer", ("", "NONE"), "MTC"),
            ("SteadyStatePulseSequence", ("", "NONE"), "SS"),
            ("Spoiling", ("", "NONE"), "SP"),
            ("OversamplingPhase", ("", "NONE"), "OSP"),
        )
        out.SequenceVariant = [code for keyword, off, code in rules if get(keyword) not in off] or ["NONE"]
