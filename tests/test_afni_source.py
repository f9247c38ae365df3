"""AFNI's real-time protocol: the prolog as its plug-in reads it, and senders that misbehave.

What is expected of prologs is worked out by hand from README.realtime and plug_realtime.c.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from scanside.benchmarks.malformed import free_port, volume
from scanside.runtime.errors import InputError
from scanside.runtime.realtime.address import Address
from scanside.runtime.realtime.afni_prolog import MARKER, read_prolog
from scanside.runtime.realtime.afni_sender import prolog_bytes
from scanside.runtime.realtime.afni_source import AfniSource
from scanside.runtime.realtime.frame import Frame
from scanside.runtime.realtime.listening import Peers
from scanside.runtime.realtime.source import Arrival, Fault, FaultKind, UnreadableVolume

MOST = 1 << 20
WAIT_S = 20.0
README = """ACQUISITION_TYPE 2D+zt
TR 5.0
XYFOV 240.0 240.0 112.0
ZNUM 16
XYZAXES S-I A-P L-R
DATUM short
XYMATRIX 64 64
"""
"""The sample of README.realtime."""
FEEDME = """ACQUISITION_TYPE 3D+t
TR 2.000000
XYFOV 240.000000 240.000000 90.000000
XYMATRIX 64 64 18
DATUM short
XYZAXES R-L A-P I-S
XYZFIRST -118.125L -118.125P -42.5S
"""
"""What rtfeedme sends of a data set whose first voxel lies right, anterior and inferior."""
SMALL = "ACQUISITION_TYPE 3D+t\nTR 1.5\nXYFOV 6 8 10\nXYMATRIX 3 4 5\nXYZAXES R-L A-P I-S\n"


def read(text: str, most: int = MOST):
    return read_prolog(text.encode(), most)


def ras(prolog, *voxel: float) -> list[float]:
    return (prolog.affine @ [*voxel, 1])[:3].round(4).tolist()


def test_the_sample_of_the_readme():
    prolog = read(README)
    assert prolog.shape == (64, 64, 16)
    assert prolog.dtype == np.dtype("i2")
    assert prolog.tr_s == 5.0
    assert prolog.image_bytes == 8192
    # slices alternate unless it is said otherwise
    assert prolog.slices == (0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
    # 3.75 mm from superior to inferior, 3.75 mm from anterior to posterior, 7 mm from left to right
    first, second = ras(prolog, 0, 0, 0), ras(prolog, 1, 1, 1)
    assert first == [-52.5, 118.125, 118.125]
    assert np.subtract(second, first).tolist() == [7.0, -3.75, -3.75]


def test_what_rtfeedme_sends():
    prolog = read(FEEDME)
    assert prolog.slices is None
    assert prolog.image_bytes == 64 * 64 * 18 * 2
    # negative towards left is right, and so on
    assert ras(prolog, 0, 0, 0) == [118.125, 118.125, -42.5]
    assert ras(prolog, 63, 63, 17) == [-118.125, -118.125, 42.5]


@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("", [2.0, 3.0, -4.0]),  # centred
        ("XYZOFF 1 2 3", [3.0, 5.0, -7.0]),
        ("XYZFIRST 30 20A 50I", [30.0, 20.0, -50.0]),
        ("XYZFIRST 30L 20P 50S", [-30.0, -20.0, 50.0]),
        ("ZFIRST 12.5", [2.0, 3.0, -12.5]),
        ("ZFIRST 12.5S", [2.0, 3.0, 12.5]),
        ("XYZFIRST 30 20 50\nZFIRST 7S", [30.0, 20.0, 7.0]),
        ("ZFIRST 7S\nXYZFIRST 30 20 50", [30.0, 20.0, -50.0]),
        ("XYZFIRST 30 20 50\nXYZOFF 0 0 0", [2.0, 3.0, -4.0]),
    ],
)
def test_where_the_first_voxel_lies(line: str, first: list[float]):
    assert ras(read(SMALL + line + "\n"), 0, 0, 0) == first


def test_a_gap_and_a_thickness():
    assert ras(read(SMALL + "ZGAP 1\nZFIRST 0\n"), 0, 0, 1)[2] == 3.0
    flat = SMALL.replace("XYFOV 6 8 10", "XYFOV 6 8\nZDELTA 4")
    assert ras(read(flat + "ZFIRST 0\n"), 0, 0, 1)[2] == 4.0


def test_a_matrix_holds_against_words():
    matrix = "OBLIQUE_XFORM 2 0 0 -10 0 2 0.5 -20 0 -0.5 3 30 0 0 0 1\n"
    assert ras(read(SMALL + matrix), 0, 0, 0) == [10.0, 20.0, 30.0]
    assert ras(read(SMALL + matrix), 1, 1, 1) == [8.0, 17.5, 32.5]


@pytest.mark.parametrize(
    ("datum", "order", "dtype"),
    [
        ("byte", "MSB_FIRST", "u1"),
        ("short", "MSB_FIRST", ">i2"),
        ("int", "LSB_FIRST", "<i4"),
        ("float", "MSB_FIRST", ">f4"),
    ],
)
def test_types_and_byte_orders(datum: str, order: str, dtype: str):
    assert read(SMALL + f"DATUM {datum}\nBYTEORDER {order}\n").dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("XYMATRIX 3 4 5", ""), "no XYMATRIX"),
        (("XYMATRIX 3 4 5", "XYMATRIX 3 4"), "no ZNUM"),
        (("XYMATRIX 3 4 5", "XYMATRIX 3 4 -5"), "XYMATRIX that is no number from 1 to 4096"),
        (("XYMATRIX 3 4 5", "XYMATRIX 4000 4000 4000"), "promises 128000000000 bytes"),
        (("XYFOV 6 8 10", "XYFOV 6 8"), "no ZDELTA"),
        (("XYFOV 6 8 10", "XYFOV nan 8 10"), "XYFOV that is no number"),
        (("R-L A-P I-S", "R-L A-P L-R"), "XYZAXES that do not point in three directions"),
        (("R-L A-P I-S", "R-L A-P"), "XYZAXES with too few values"),
        (("TR 1.5", "TR"), "damaged values"),
        (("TR 1.5", "TR 0"), "TR that is not above 0"),
        (("TR 1.5", "DATUM complex"), "DATUM that is none of byte, float, int, short"),
        (("3D+t", "4D"), "ACQUISITION_TYPE that is none of"),
        (("TR 1.5", "NUM_CHAN 99"), "NUM_CHAN over 32"),
        (("TR 1.5", "XYZFIRST 1S 2A 3I"), "XYZFIRST along another axis than XYZAXES"),
        (("3D+t\nTR 1.5", "2D+zt\nZORDER explicit 0 1"), "ZORDER that is none of alt, seq"),
    ],
)
def test_prologs_that_describe_no_volume(change: tuple[str, str], said: str):
    with pytest.raises(UnreadableVolume, match=said.replace("+", r"\+")):
        read(SMALL.replace(*change))


def test_names_and_notes_are_not_read():
    plain, noted = read(SMALL), read(SMALL + "NOTE Erika Mustermann\nPREFIX Mustermann\nNAME E\n")
    assert plain.affine.tolist() == noted.affine.tolist()
    with pytest.raises(UnreadableVolume) as caught:
        read("XYMATRIX Mustermann\n")
    assert "Mustermann" not in str(caught.value)


@pytest.fixture
def source() -> Iterator[AfniSource]:
    threads = threading.active_count()
    opened = AfniSource(Address("127.0.0.1", free_port()), pace_s=0.1)
    yield opened
    opened.close()
    assert threading.active_count() == threads


def port_of(source: AfniSource) -> int:
    return source._address.port


def connect(source: AfniSource, control: str | None = None) -> socket.socket:
    """A sender, written from README.realtime: control, then data."""
    port = port_of(source)
    with socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall((control or f"tcp:localhost:{port - 1}").encode() + b"\0")
    return socket.create_connection(("127.0.0.1", port - 1))


def take(source: AfniSource, count: int) -> list[Arrival]:
    came: list[Arrival] = []
    while len(came) < count:
        more = source.poll(WAIT_S)
        assert more, f"nothing more came after {came}"
        came += more
    return came


def data(number: int) -> np.ndarray:
    return np.arange(60, dtype="<i2").reshape(3, 4, 5, order="F") + 100 * number


def test_volumes_are_numbered_by_their_place_in_the_stream(source: AfniSource):
    with connect(source) as sender:
        sender.sendall(SMALL.encode() + b"\0")
        for n in range(3):
            sender.sendall(data(n).tobytes(order="F"))
    frames = take(source, 3)
    for n, frame in enumerate(frames):
        assert isinstance(frame, Frame)
        assert (frame.number, frame.tr_s) == (n, 1.5)
        np.testing.assert_array_equal(frame.data, data(n))


@pytest.mark.parametrize("channels", [1, 2])
def test_slices_of_channels_come_in_turn(source: AfniSource, channels: int):
    prolog = SMALL.replace("3D+t", "2D+zt") + f"NUM_CHAN {channels}\nBYTEORDER MSB_FIRST\n"
    with connect(source) as sender:
        sender.sendall(prolog.encode() + b"\0")
        for z in (0, 2, 4, 1, 3):
            for c in range(channels):
                sender.sendall(data(c)[:, :, z].astype(">i2").tobytes(order="F"))
    frames = take(source, channels)
    assert len({frame.series for frame in frames}) == channels
    for c, frame in enumerate(frames):
        assert isinstance(frame, Frame)
        np.testing.assert_array_equal(frame.data, data(c))


def test_a_marker_ends_a_data_set_and_another_follows(source: AfniSource):
    with connect(source) as sender:
        for _ in range(2):
            sender.sendall(SMALL.encode() + b"\0" + data(0).tobytes(order="F"))
            sender.sendall(MARKER.ljust(120, b"\0"))
    first, second = take(source, 2)
    assert isinstance(first, Frame)
    assert isinstance(second, Frame)
    assert (first.number, second.number) == (0, 0)
    assert first.series != second.series


def test_a_volume_that_is_broken_off_is_truncated(source: AfniSource):
    with connect(source) as sender:
        sender.sendall(SMALL.encode() + b"\0" + data(0).tobytes() + data(1).tobytes()[:50])
    frame, fault = take(source, 2)
    assert isinstance(frame, Frame)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.number, fault.series) == (FaultKind.TRUNCATED, 1, frame.series)


def test_silence_within_a_volume_ends_the_connection(source: AfniSource):
    source._patience_s = 0.05
    with connect(source) as sender:
        sender.sendall(SMALL.encode() + b"\0" + data(0).tobytes()[:50])
        (fault,) = take(source, 1)
        assert isinstance(fault, Fault)
        assert fault.kind is FaultKind.TRUNCATED
    with connect(source) as sender:
        sender.sendall(SMALL.encode() + b"\0" + data(0).tobytes())
        (frame,) = take(source, 1)
    assert isinstance(frame, Frame)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("shm:grv:1M", "would use shared memory; name a host"),
        ("tcp:localhost:80", "would come on port 80"),
        ("GET / HTTP/1.1", "does not speak AFNI's protocol"),
        ("tcp:localhost:{data}\nrm -r /", "asks for a program to be run"),
        ("x" * 5000, "more than 1024 bytes"),
    ],
)
def test_other_control_connections_are_refused(source: AfniSource, control: str, said: str):
    text = control.format(data=port_of(source) - 1)
    with socket.create_connection(("127.0.0.1", port_of(source))) as opened:
        opened.sendall(text.encode() + b"\0")
        (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.UNREADABLE
    assert said in fault.detail
    assert source.refused == {"unreadable": 1}


def test_a_prolog_without_an_end_is_not_kept(source: AfniSource):
    with connect(source) as sender:
        sender.sendall(b"NOTE " + b"x" * 40_000)
        (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert "more than 32768 bytes where a NUL should be" in fault.detail


def test_a_later_volume_may_not_be_much_larger_than_the_first(source: AfniSource):
    with connect(source) as sender:
        sender.sendall(SMALL.encode() + b"\0" + data(0).tobytes())
    take(source, 1)
    with connect(source) as sender:
        sender.sendall(SMALL.replace("3 4 5", "30 40 50").encode() + b"\0")
        (fault,) = take(source, 1)
    assert isinstance(fault, Fault)
    assert "promises 120000 bytes a volume; one of this run has at most 240" in fault.detail


@pytest.mark.parametrize("below", [0, 1], ids=["control", "data"])
def test_a_port_in_use_is_one_sentence(below: int):
    port = free_port()
    with socket.create_server(("127.0.0.1", port - below)):
        with pytest.raises(InputError, match="cannot listen at .* in use; end what uses it"):
            AfniSource(Address("127.0.0.1", port), pace_s=1.0)
    AfniSource(Address("127.0.0.1", port), pace_s=1.0).close()  # nothing was left open


def test_beyond_this_machine_a_peer_must_be_named():
    with pytest.raises(InputError, match="AFNI's protocol cannot carry a token.*--peer ADDRESS"):
        AfniSource(Address("0.0.0.0", free_port()), pace_s=1.0)
    peers = Peers.parse(("192.0.2.0/24", "2001:db8::7"))
    assert peers.admit("192.0.2.9")
    assert peers.admit("::ffff:192.0.2.9")
    assert peers.admit("2001:db8::7")
    assert peers.admit("127.0.0.1")
    assert not peers.admit("192.0.3.9")
    assert not peers.admit("nonsense")


def test_closing_waits_for_nobody():
    source = AfniSource(Address("127.0.0.1", free_port()), pace_s=1.0)
    with connect(source) as sender:
        sender.sendall(SMALL.encode() + b"\0" + data(0).tobytes()[:50])
        source.close()
        source.close()
    assert "afni-source" not in [thread.name for thread in threading.enumerate()]


def test_a_prolog_that_is_sent_says_the_affine_in_words_too():
    sent = volume()
    words = b"\n".join(
        line
        for line in prolog_bytes(sent, sent.data, by_slice=False).split(b"\n")
        if not line.startswith(b"OBLIQUE")
    )
    # without the matrix the centre is 0, but spacing and directions are there
    found = read_prolog(words.rstrip(b"\0"), MOST)
    np.testing.assert_allclose(found.affine[:3, :3], sent.affine[:3, :3], atol=1e-6)
