"""What DICOM headers say of a person: names of fields only, never their values.

After the Basic Application Level Confidentiality Profile (DICOM PS3.15, Annex E, Table E.1-1, as of 2024). Sequences are gone through to
any depth, so that the lists hold what stands in them and few sequences. Left out are: age, sex, size and weight (Retain Patient
Characteristics Option; staging needs them), UIDs (they name images, not people), and what describes a procedure (Clean Descriptors Option).
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..images.dicom import damage_of, looks_like_dicom, read_header

#: Removed outright (X): told in every file.
REMOVED = (
    # the patient
    "PatientAddress", "PatientTelephoneNumbers", "PatientTelecomInformation", "PatientMotherBirthName", "PatientBirthName", "PatientBirthTime",
    "PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar", "OtherPatientIDs", "OtherPatientIDsSequence",
    "OtherPatientNames", "IssuerOfPatientID", "MilitaryRank", "BranchOfService", "CountryOfResidence", "RegionOfResidence",
    "PatientReligiousPreference", "PatientPrimaryLanguageCodeSequence", "Occupation", "EthnicGroup", "EthnicGroupCodeSequence",
    "MedicalRecordLocator", "PatientInsurancePlanCodeSequence", "InsurancePlanIdentification", "ReferencedPatientPhotoSequence",
    "ResponsiblePerson", "ResponsibleOrganization", "PatientState", "LastMenstrualDate", "Allergies", "MedicalAlerts", "SpecialNeeds",
    # the stay
    "AdmissionID", "IssuerOfAdmissionID", "ServiceEpisodeID", "ServiceEpisodeDescription", "CurrentPatientLocation",
    "PatientInstitutionResidence", "ScheduledPatientInstitutionResidence", "PatientTransportArrangements", "AdmittingDiagnosesDescription",
    "DischargeDiagnosisDescription", "ReasonForVisit", "ConfidentialityConstraintOnPatientDataDescription",
    # other people
    "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "ReferringPhysicianIdentificationSequence", "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy", "PerformingPhysicianName", "RequestingPhysician", "RequestingService",
    "ScheduledPerformingPhysicianName", "NamesOfIntendedRecipientsOfResults", "HumanPerformerName", "HumanPerformerOrganization",
    "OrderEnteredBy", "OrderEntererLocation", "OrderCallbackPhoneNumber", "OrderCallbackTelecomInformation", "PersonAddress",
    "PersonTelephoneNumbers", "PersonTelecomInformation", "InterpretationAuthor", "InterpretationRecorder", "InterpretationTranscriber",
    "PhysicianApprovingInterpretation", "DistributionName", "DistributionAddress", "CameraOwnerName",
    # places and devices
    "InstitutionAddress", "InstitutionalDepartmentName", "PerformedLocation", "PerformedStationName", "PerformedStationAETitle",
    "ScheduledStationName", "ScheduledStationAETitle", "ScheduledStudyLocation", "RequestedProcedureLocation", "StationAETitle", "PlateID",
    "CassetteID", "GantryID", "GeneratorID", "GPSLatitude", "GPSLongitude",
    # requests
    "RequestedProcedureID", "ScheduledProcedureStepID", "PerformedProcedureStepID",
    # free text, and pictures within the picture
    "PatientComments", "AdditionalPatientHistory", "ImageComments", "FrameComments", "IdentifyingComments", "AcquisitionComments",
    "StudyComments", "VisitComments", "RequestedProcedureComments", "ImagingServiceRequestComments", "CommentsOnThePerformedProcedureStep",
    "ReasonForStudy", "ReasonForTheRequestedProcedure", "ReasonForTheImagingServiceRequest", "InterpretationText", "OverlayComments",
    "OverlayData", "IconImageSequence")
#: Emptied or replaced by a dummy (Z, D), or dates, which some options retain: told only where the file does not say that it was de-identified.
DUMMY = (
    "PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "ConsultingPhysicianName", "OperatorsName",
    "PersonName", "ContentCreatorName", "VerifyingObserverName", "ReviewerName", "InstitutionName", "StationName", "DeviceSerialNumber",
    "StudyID", "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "StudyDate", "SeriesDate", "AcquisitionDate", "AcquisitionDateTime", "ContentDate",
    "InstanceCreationDate", "AdmittingDate", "DischargeDate", "DateOfSecondaryCapture", "ScheduledProcedureStepStartDate",
    "PerformedProcedureStepStartDate", "StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime")


@dataclass
class HeaderFacts:
    """Of one file, or of all files of a series: `identifying` names of fields; `unmarked`: one does not say PatientIdentityRemoved = YES;
    `method`: each names how it was done; `burned_in`: one says that text stands in the pixels."""

    identifying: list[str] = field(default_factory=list)
    unmarked: bool = False
    method: bool = True
    burned_in: bool = False


def inspect_headers(path: Path) -> HeaderFacts:
    """Look at the header of the file `path`, or at every header below the folder `path`. Raises ImageError where one is damaged."""
    facts, told = HeaderFacts(), {}
    for item in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with damage_of(item, "reading its header"):
            if not item.is_file():
                continue
            with item.open("rb") as file:
                if not looks_like_dicom(file.read(132)):
                    continue
            header = read_header(item)
            held = {element.keyword if not element.tag.is_private else "private elements" for element in header.iterall()
                    if element.value}
            marked = _says(header, "PatientIdentityRemoved") == "YES"
            facts.burned_in |= _says(header, "BurnedInAnnotation") == "YES"
            facts.method &= bool(header.get("DeidentificationMethod") or header.get("DeidentificationMethodCodeSequence"))
        facts.unmarked |= not marked
        told |= dict.fromkeys(keyword for keyword in (REMOVED if marked else REMOVED + DUMMY + ("private elements",))
                              if keyword in held)
    facts.identifying = list(told)
    return facts


def _says(header, keyword: str) -> str:
    return str(header.get(keyword, "")).strip()
