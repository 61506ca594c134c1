"""Answers as DICOM: a secondary capture with the heat map, and a measurement report (TID 1500) that refers to the image that was staged.

Both belong to the patient and the study of their source, as any derived object must, or no archive could file them. They are the only things
that `sos` writes which carry anything from a header. Codes are of DCM, SNOMED CT and UCUM where those have one; the rest, the stages above all,
are of a coding scheme of our own, 99SOS, which says of itself what it is.
"""

import uuid
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from . import __version__
from .errors import ImageError
from .images.reader import GreyImage
from .origin import UIDS, Origin, find_origin
from .pictures import capture
from .rows import USE, whole_file

OURS = "99SOS"
MAKER = "sos project"
SERIES = {"capture": 9901, "report": 9902}  # numbers of the two series
TITLE = "SOS fusion stage, research use only"
NOTICE = "RESEARCH USE ONLY, not for clinical decisions. Computed by software without regulatory approval; no reader has confirmed it."


def write_dicom(folder: Path, name: str, path, image: GreyImage, cam: np.ndarray, answer: dict, stager) -> list[str]:
    """Write `<name>_capture.dcm` and `<name>_report.dcm`, each whole or not at all, with new UIDs; returns warnings.

    answer, cam, stager: as in `pictures`. An input that is no DICOM, or whose source cannot be told, has a warning in place of them; so has one
    for which they cannot be built. Raises OSError where there is no room for them.
    """
    if not image.record["format"].startswith("DICOM"):
        return ["no DICOM objects were written: the input is no DICOM file, so it belongs to no patient and study"]
    try:
        origin = find_origin(path, image)
    except ImageError as error:
        return [f"no DICOM objects were written: {error}"]
    warnings = []
    study = str(origin.first.get("StudyInstanceUID") or "")
    if not hd.UID(study).is_valid or not study:
        study = hd.UID()
        warnings.append("the header has no study; the DICOM objects are in a new one")
    if not origin.first.get("PatientID"):
        warnings.append("the header has no patient identifier; the DICOM objects have none either")
    if not origin.referable:
        warnings.append("the header lacks UIDs, or names a class that is not known, so the structured report refers to the secondary capture only")
    try:
        shown, scale = secondary_capture(study, origin, image, cam, answer, stager)
        report = structured_report(study, origin, shown, scale, answer, stager)
        with whole_file(Path(folder) / f"{name}_capture.dcm", "wb") as one, whole_file(Path(folder) / f"{name}_report.dcm", "wb") as other:
            shown.save_as(one, enforce_file_format=True)
            report.save_as(other, enforce_file_format=True)
    except OSError:  # a full disk, which the other inputs would meet too
        raise
    except Exception as error:  # of whatever kind: its text may quote the header, and the other inputs wait
        return [f"no DICOM objects were written ({type(error).__name__})"]
    return warnings


def secondary_capture(study: str, origin: Origin, image: GreyImage, cam: np.ndarray, answer: dict, stager) -> tuple[Dataset, float]:
    """The picture of an answer as Secondary Capture Image (RGB, uncompressed), and how many of its pixels one of the image is long."""
    pixels, scale = capture(image, cam, answer, stager)
    dataset = hd.sc.SCImage(pixels, "RGB", 8, "PATIENT", patient_orientation=("A", "F"), **_common(study, "capture"))
    dataset.PatientOrientation = origin.orientation
    dataset.ConversionType, dataset.BodyPartExamined = "WSD", "SKULL"  # a workstation made it; a skull is unpaired, so no side is asked for
    dataset.DerivationDescription = f"Heat map (Grad-CAM) of a network over the image that it staged. {NOTICE}"
    dataset.ImageComments = NOTICE
    dataset.SoftwareVersions = __version__
    origin.file_under(dataset)
    if origin.referable:
        dataset.SourceImageSequence = [_reference(header) for header in origin.headers]
    # our words name nobody, but the image that they stand on may: its header knows, or nobody does
    burned_in = "NO" if origin.cut else str(origin.first.get("BurnedInAnnotation") or "")
    if burned_in in ("YES", "NO"):
        dataset.BurnedInAnnotation = burned_in
    if origin.first.get("LossyImageCompression") == "01":  # once lossy, always told
        for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if name in origin.first:
                dataset[name] = origin.first[name]
    return dataset, scale


def structured_report(study: str, origin: Origin, shown: Dataset, scale: float, answer: dict, stager) -> Dataset:
    """An answer as Comprehensive SR of TID 1500, with one group of measurements of the region that was looked at.

    The region is given in pixels of the source where that is one image; where it is a volume, in pixels of the capture `shown`, whose pixels
    are `scale` to one of the slice that was cut.
    """
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'sos/{__version__}/{stager.source}').int}", name="sos", manufacturer_name=MAKER,
                model_name=stager.source[:64]))),
        procedure_reported=codes.SCT.ImagingProcedure, imaging_measurements=[_measurements(origin, shown, scale, answer, stager)])
    items, stubs = content[0].ContentSequence, [_stub(shown)]
    if origin.referable:
        stubs = [_stub(header) for header in origin.headers] + stubs
        items.insert(len(items) - 1, _library(origin))  # the template has it before the measurements
    items.append(sr.TextContentItem(codes.DCM.Comment, NOTICE, sr.RelationshipTypeValues.CONTAINS))
    dataset = sr.ComprehensiveSR(
        evidence=[_in(study, stub) for stub in stubs], content=content[0], is_complete=True, software_versions=__version__,
        coding_schemes=[CodingSchemeIdentificationItem(OURS, name="Stages of the spheno-occipital synchondrosis, sos", version=__version__,
                                                       responsible_organization=MAKER)],
        **{key: value for key, value in _common(study, "report").items() if key != "study_instance_uid"})
    origin.file_under(dataset)
    return dataset


def _measurements(origin: Origin, shown: Dataset, scale: float, answer: dict, stager):
    """Stage, probabilities, expected stage and uncertainty, of a region where the network looked at one."""
    scheme = stager.scheme
    stage = scheme.stages[scheme.index(answer["stage"])]
    numbers = [("expected-stage", "Expected stage (mean under the probabilities)", answer["expected_stage"]),
               ("uncertainty", "Uncertainty (entropy over its maximum)", answer["uncertainty"])]
    numbers += [(f"p-{known.label}", f"Probability of stage {known.label}", p)
                for known, p in zip(scheme.stages, answer["probabilities"], strict=True)]
    known = {
        "tracking_identifier": sr.TrackingIdentifier(hd.UID(), "SOS"), "finding_sites": [sr.FindingSite(codes.SCT.Skull)],
        "finding_type": _ours("sos", "Spheno-occipital synchondrosis"),
        "algorithm_id": sr.AlgorithmIdentification(
            "sos", __version__, [f"weights: {stager.source}", f"trained on virtual patients only: {'yes' if stager.virtual else 'no'}", USE],
            family=codes.DCM.ArtificialIntelligence, manufacturer=MAKER),
        "measurements": [sr.Measurement(_ours(code, meaning), float(value), codes.UCUM.NoUnits) for code, meaning, value in numbers],
        "qualitative_evaluations": [
            sr.QualitativeEvaluation(_ours(f"{scheme.name}", f"Fusion stage ({scheme.source.partition(';')[0]})"[:64]),
                                     _ours(f"{scheme.name}-{stage.label}", f"Stage {stage.label}: {stage.criterion}"[:64])),
            sr.QualitativeEvaluation(_ours("use", "Intended use"), _ours("research", "Research use only, not for clinical decisions"))]}
    in_source = origin.referable and not origin.cut
    seen, scale = (origin.first, 1.0) if in_source else (shown, scale)
    uids = str(seen.SOPClassUID), str(seen.SOPInstanceUID)
    if answer["box"] is None:
        return sr.MeasurementsAndQualitativeEvaluations(**known, source_images=[sr.SourceImageForMeasurementGroup(*uids)])
    x0, y0, x1, y1 = answer["box"]
    corners = scale * np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])  # from the outer corner of the first pixel, as DICOM counts
    region = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, corners, sr.SourceImageForRegion(*uids))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(**known, referenced_region=region)


def _library(origin: Origin):
    """The image library (TID 1600): every file that the answer comes from, with its modality."""
    modalities = {code.value: code for code in (getattr(codes.cid29, name) for name in codes.cid29.dir())}
    modality = modalities.get(str(origin.first.get("Modality", "")), codes.cid32.Other)
    contains, context = sr.RelationshipTypeValues.CONTAINS, sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    library = sr.ContainerContentItem(codes.DCM.ImageLibrary, relationship_type=contains)
    group = sr.ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type=contains)
    images = [sr.ImageContentItem(codes.SCT.Source, str(header.SOPClassUID), str(header.SOPInstanceUID), relationship_type=contains)
              for header in origin.headers]
    group.ContentSequence = sr.ContentSequence([sr.CodeContentItem(codes.DCM.Modality, modality, context), *images])
    library.ContentSequence = sr.ContentSequence([group])
    return library


def _common(study: str, kind: str) -> dict:
    """What both objects say of themselves; each is in a series of its own."""
    return {"study_instance_uid": study, "series_instance_uid": hd.UID(), "series_number": SERIES[kind], "sop_instance_uid": hd.UID(),
            "instance_number": 1, "manufacturer": MAKER, "manufacturer_model_name": "sos", "series_description": f"{TITLE} ({kind})"}


def _ours(code: str, meaning: str) -> sr.CodedConcept:
    return sr.CodedConcept(code, OURS, meaning, __version__)


def _stub(header: Dataset) -> Dataset:
    """The UIDs of an object and nothing else of it: what is handed to highdicom, which could log the rest."""
    stub = Dataset()
    for name in UIDS:
        setattr(stub, name, str(header[name].value))
    return stub


def _in(study: str, stub: Dataset) -> Dataset:
    """The empty patient and study that highdicom asks an object of evidence for."""
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        setattr(stub, name, "")
    return stub


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)]
    return item
