"""Patient fields in every format that a folder can hold: none gets any further than the file."""

import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from scanside.runtime.realtime.folder_source import FolderSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.run_file import RunFile
from scanside.runtime.realtime.source import Arrival
from scanside.runtime.realtime.volume_writer import WrittenVolume
from scanside.runtime.realtime.writers import FORMATS, make_writer

PUBLIC = {
    "PatientName": "Secret00^Jane",
    "PatientID": "Secret01",
    "OtherPatientIDs": "Secret02",
    "PatientAddress": "Secret03",
    "PatientComments": "Secret04",
    "ReferringPhysicianName": "Secret05",
    "InstitutionName": "Secret06",
    "StationName": "Secret07",
    "AccessionNumber": "Secret08",
    "OperatorsName": "Secret09",
    "StudyDescription": "Secret10",
    "SeriesDescription": "Secret11",
    "ProtocolName": "Secret12",
    "DeviceSerialNumber": "Secret13",
    "SoftwareVersions": "Secret14",
    "StudyID": "Secret15",
    "MedicalRecordLocator": "Secret16",
}


def marked(raw: bytes) -> bytes:
    """The same file, of somebody: in public and private tags, nested ones and UIDs."""
    if raw[128:132] != b"DICM":
        return raw.replace(b":   -\n", b":   Secret17\n")
    dataset = dcmread(BytesIO(raw))
    mark(dataset)
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in dataset.get(sequence) or []:
            mark(item)
            for group in [element for element in item if element.VR == "SQ"]:
                mark(group.value[0])
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def mark(dataset: Dataset) -> None:
    for name, value in PUBLIC.items():
        setattr(dataset, name, value)
    private = dataset.private_block(0x0051, "SECRET18", create=True)
    private.add_new(0x01, "LO", "Secret19")
    deeper = Dataset()
    deeper.PatientName = "Secret20"
    private.add_new(0x02, "SQ", [deeper])


@pytest.mark.parametrize("name", FORMATS[2:])
def test_nothing_of_a_patient_leaves_the_file(
    name: str,
    small_run: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
):
    caplog.set_level(logging.DEBUG)
    folder, now_s, run = tmp_path / "in", [100.0], RunFile(small_run(4))
    folder.mkdir()
    source = FolderSource(
        folder, pace_s=2.0, watch=False, rescan_trs=0, clock=lambda: now_s[0], existing="take"
    )
    writer, uids = make_writer(name, "run"), set[str]()
    for number, data in enumerate(run.read()):
        volume = WrittenVolume(
            data=data,
            affine=run.affine,
            slope=1.0,
            inter=0.0,
            tr_s=1.6,
            number=number,
            series=5,
            acquired_s=0.0,
        )
        for index, (ending, raw) in enumerate(writer.parts(volume)):
            raw = marked(raw)
            if raw[128:132] == b"DICM":
                uids |= {str(e.value) for e in dcmread(BytesIO(raw)) if e.VR == "UI"}
            # the second volume is cut off, the third one damaged
            raw = raw[:-20] if number == 1 else raw
            raw = raw[:1500] + b"\xff" * 40 + raw[1540:] if number == 2 and not index else raw
            (folder / f"Secret21_{number + 1}{ending}").write_bytes(raw)
    (folder / "Secret22.dcm").write_bytes(b"Secret23 " * 50)
    arrivals: list[Arrival] = []
    for _ in range(6):
        arrivals += source.poll(0.0)
        now_s[0] += 4.0
    assert [a.number for a in arrivals if isinstance(a, Frame)].count(0) == 1
    assert len(arrivals) > 3
    said = [getattr(a, field) for a in arrivals for field in a.__dataclass_fields__]
    everything = f"{said} {caplog.text} {capfd.readouterr()}".lower()
    assert "secret" not in everything
    assert not [uid for uid in uids if uid in everything]
