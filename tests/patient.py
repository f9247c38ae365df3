"""Thirty things that tell who a patient is, and how they stand in a scanner's files."""

from pathlib import Path

import pydicom

PUBLIC = {
    "PatientName": "DOEMANN^JANESSA",
    "PatientID": "PID-4711-0815",
    "PatientBirthDate": "19710423",
    "PatientAddress": "17 Nowhere Lane",
    "PatientTelephoneNumbers": "+49-30-5550123",
    "PatientMotherBirthName": "SCHMIDTKE",
    "PatientBirthName": "MUSTERFRAU",
    "OtherPatientNames": "JANEY^DOE-ALIAS",
    "MilitaryRank": "Oberstabsgefreite",
    "EthnicGroup": "EthnicGroupX",
    "Occupation": "Glassblower",
    "PatientComments": "afraid of spiders",
    "AdditionalPatientHistory": "fell off a horse",
    "CountryOfResidence": "Liechtenstein",
    "RegionOfResidence": "Vaduz-Region",
    "ReferringPhysicianName": "HOUSE^GREGORY",
    "PerformingPhysicianName": "WILSON^JAMES",
    "OperatorsName": "OPERATRIX^ANNA",
    "InstitutionName": "Hospital of Nowhere",
    "InstitutionAddress": "1 Hospital Road",
    "StationName": "STATION-XYZZY",
    "AccessionNumber": "ACC-998877",
    "StudyID": "STUDY-31337",
    "StudyDescription": "memory of JANESSA",
    "ImageComments": "comment on JANESSA D.",
    "DeviceSerialNumber": "SERIAL-55512",
}
PRIVATE = {
    (0x0029, "SIEMENS CSA HEADER", 0x60): "private-name-DOEMANN",
    (0x0019, "SIEMENS MR HEADER", 0x77): "private-id-4711",
    (0x7FE1, "SOME VENDOR", 0x01): "private-vendor-note",
}
STUDY_UID = "1.2.826.0.1.3680043.8.498.4711081519710423"
FILE_NAME = "DOEMANN_JANESSA_19710423.MR"
IDENTIFIERS = [*PUBLIC.values(), *PRIVATE.values(), STUDY_UID, FILE_NAME]


def seed(file: Path) -> None:
    """Put into a file of the scanner all that tells who the patient is and has a place there."""
    raw = file.read_bytes()
    if raw[128:132] == b"DICM":
        _seed_dicom(file)
    elif file.suffix == ".par":
        named = raw.replace(b":   -\n", b":   DOEMANN^JANESSA\n")
        assert named != raw
        file.write_bytes(named)
    elif file.suffix == ".nii":  # its places for a name and for a description
        file.write_bytes(raw[:14] + b"PID-4711-0815".ljust(18, b"\0") + raw[32:])


def _seed_dicom(file: Path) -> None:
    dataset = pydicom.dcmread(file)
    for name, value in PUBLIC.items():
        setattr(dataset, name, value)
    for (group, creator, element), value in PRIVATE.items():
        dataset.private_block(group, creator, create=True).add_new(element, "LO", value)
    dataset.StudyInstanceUID = STUDY_UID
    dataset.save_as(file)
    content = file.read_bytes()
    assert all(value.encode() in content for value in IDENTIFIERS if value != FILE_NAME)
