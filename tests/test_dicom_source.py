"""A DICOM node for C-STORE, with pynetdicom as the scanner on the other end."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import JPEG2000, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from scanside.benchmarks.malformed import free_port, volume
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.dicom_sender import DicomSender, store
from scanside.runtime.realtime.dicom_source import DicomSource
from scanside.runtime.realtime.faults import Delivery
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.mosaic_writer import MosaicWriter
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind

WAIT_S = 20.0
NAME = "MUSTERMANN^ERIKA"
ECHO = "1.2.840.10008.1.1"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def source(port: int) -> Iterator[DicomSource]:
    threads = threading.active_count()
    opened = DicomSource(Address("127.0.0.1", port), pace_s=0.5)
    yield opened
    opened.close()
    opened.close()
    assert threading.active_count() <= threads


@pytest.fixture
def scanner(source: DicomSource, port: int) -> Iterator[Any]:
    association = associated(port)
    assert association.is_established
    yield association
    association.release()


_SOCKETS: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed_sockets() -> Iterator[None]:
    """pynetdicom leaves a client's socket open when the other side ends the association first."""
    yield
    while _SOCKETS:
        _SOCKETS.pop().close()


def associated(port: int) -> Any:
    node = AE(ae_title="SCANNER")
    node.acse_timeout = node.dimse_timeout = WAIT_S
    for kind in (MRImageStorage, CTImageStorage, ECHO):
        node.add_requested_context(kind, ExplicitVRLittleEndian)
    association = node.associate("127.0.0.1", port, ae_title="ANY")
    own = association.dul.socket and association.dul.socket.socket
    if own:
        _SOCKETS.append(own)
    return association


def dataset(number: int = 0) -> Dataset:
    ((_, raw),) = MosaicWriter("test").parts(volume(number))
    made = dcmread(BytesIO(raw))
    made.PatientName, made.PatientID = NAME, "19700101"
    return made


def take(source: DicomSource, count: int) -> list[Arrival]:
    came: list[Arrival] = []
    while len(came) < count:
        more = source.poll(WAIT_S)
        assert more, f"nothing more came after {came}"
        came += more
    return came


def test_what_is_stored_is_a_frame(source: DicomSource, scanner: Any):
    for n in (0, 1):
        assert store(scanner, dataset(n)) == 0x0000
    for n, frame in enumerate(take(source, 2)):
        assert isinstance(frame, Frame)
        assert (frame.number, frame.tr_s) == (n, 1.6)
        np.testing.assert_array_equal(frame.data, volume(n).data)


def test_a_scanner_may_ask_whether_we_are_there(scanner: Any):
    assert scanner.send_c_echo().Status == 0x0000


def test_pixels_that_are_cut_off_are_truncated(source: DicomSource, scanner: Any):
    cut = dataset(3)
    cut.PixelData = cut.PixelData[:100]
    assert store(scanner, cut) == 0xA900
    (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.number) == (FaultKind.TRUNCATED, 3)
    assert source.refused == {"truncated": 1}


def test_what_is_no_volume_is_refused_and_counted(source: DicomSource, scanner: Any):
    other = dataset()
    del other.SeriesInstanceUID
    assert store(scanner, other) == 0xA900
    (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.UNREADABLE
    assert store(scanner, dataset(1)) == 0x0000  # and it goes on
    assert isinstance(take(source, 1)[0], Frame)


def test_other_kinds_of_images_are_not_taken(scanner: Any):
    accepted = {context.abstract_syntax for context in scanner.accepted_contexts}
    assert accepted == {MRImageStorage, ECHO}


def test_a_transfer_syntax_that_is_lossy_is_not_offered(source: DicomSource, port: int):
    node = AE()
    node.add_requested_context(MRImageStorage, JPEG2000)
    association = node.associate("127.0.0.1", port)
    assert not association.accepted_contexts
    association.abort()


def test_no_name_gets_further_than_the_file(source: DicomSource, scanner: Any):
    named = dataset()
    store(scanner, named)
    cut = dataset(1)
    cut.PixelData = cut.PixelData[:2]
    store(scanner, cut)
    for arrival in take(source, 2):
        assert "MUSTERMANN" not in repr(arrival)
        assert "19700101" not in repr(arrival)
        assert named.SeriesInstanceUID not in repr(arrival)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak DICOM"),
        (b"\1\0\xff\xff\xff\xff" + bytes(5000), "promises 4294967295 bytes at once"),
        (b"\1\0\0\0\0\x44" + bytes(0x44), "does not speak DICOM"),
    ],
)
def test_garbage_is_counted_and_nothing_else(source: DicomSource, port: int, raw: bytes, said: str):
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.sendall(raw)
        rude.shutdown(socket.SHUT_WR)
        (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert said in fault.detail
    scanner = associated(port)
    assert store(scanner, dataset()) == 0x0000
    scanner.release()


def test_a_file_that_is_too_large_ends_its_association(
    source: DicomSource, scanner: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scanside.runtime.realtime.dicom_source._HEADERS_BYTES", 100_000)
    store(scanner, dataset())
    take(source, 1)
    large = dataset(1)
    large.add_new(0x0040A160, "UT", "x" * 300_000)
    assert store(scanner, large) is None
    assert "a file of more than" in [a.detail[:19] for a in take(source, 1)]
    again = associated(source._server.server_address[1])
    assert store(again, dataset(2)) == 0x0000
    again.release()


def test_an_address_in_use_is_one_sentence(source: DicomSource, port: int):
    with pytest.raises(InputError, match="cannot listen at .* in use"):
        DicomSource(Address("127.0.0.1", port), pace_s=1.0)


def test_beyond_this_machine_a_peer_must_be_named(port: int):
    with pytest.raises(InputError, match="C-STORE cannot carry a token.*--peer ADDRESS"):
        DicomSource(Address("0.0.0.0", port), pace_s=1.0)


def test_an_answer_that_crosses_garbage_ends_one_connection(source: DicomSource, port: int):
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.settimeout(WAIT_S)
        while not (associations := source._server.active_associations):
            pass
        association, dul = associations[0], associations[0].dul
        while dul.state_machine.current_state != "Sta2":  # "waiting to be asked"
            pass
        dul.state_machine.do_action("Evt7")  # "accept", before anything was asked for
        assert rude.recv(1) == b""
    (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert fault.detail == "a connection that broke"
    for thread in (association, dul):
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_sender_waits_while_too_many_others_are_there(source: DicomSource, port: int):
    others = [associated(port) for _ in range(4)]
    refused = threading.Event()

    def send() -> None:
        sending = DicomSender(Address("127.0.0.1", port), MosaicWriter("test"))
        sending.send(volume(3), Delivery(due_trs=1.0, number=3))
        sending.close()

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Rejected Transient" in record.getMessage():
                refused.set()

    logging.getLogger("pynetdicom").addHandler(listening := Listening())
    thread = threading.Thread(target=send)
    thread.start()
    assert refused.wait(WAIT_S)
    others.pop().release()
    (frame,) = take(source, 1)
    assert isinstance(frame, Frame)
    assert frame.number == 3
    thread.join()
    logging.getLogger("pynetdicom").removeHandler(listening)
    for other in others:
        other.release()


def test_closing_waits_for_nobody(port: int):
    threads = threading.active_count()
    source = DicomSource(Address("127.0.0.1", port), pace_s=1.0)
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.sendall(b"\1\0")
        scanner = associated(port)
        source.close()
    scanner.abort()
    scanner.join()
    assert threading.active_count() <= threads
