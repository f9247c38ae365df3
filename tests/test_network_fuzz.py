"""Malformed frames and headers: refused and counted, and the next whole volume is taken.

`benchmarks/network_fuzz.py` throws a hundred thousand of them.
"""

import pytest

from scanside.benchmarks.header_fuzz import fuzz_headers
from scanside.benchmarks.network_fuzz import fuzz_afni, fuzz_dicom, fuzz_zmq
from scanside.benchmarks.sink_fuzz import fuzz_published, fuzz_ws


def test_malformed_headers_are_the_two_errors_for_bad_input():
    found = fuzz_headers(4000, seed=1)
    assert found["refused"] > found["read"] > 0


@pytest.mark.parametrize(
    ("fuzz", "count"),
    [(fuzz_zmq, 1500), (fuzz_afni, 120), (fuzz_dicom, 40), (fuzz_published, 500), (fuzz_ws, 40)],
)
def test_what_listens_outlives_what_is_malformed(fuzz, count: int):
    found = fuzz(count, seed=1)
    assert found["refused"] > count // 4
