"""Malformed frames and headers: refused and counted, and the next whole volume is taken.

`benchmarks/network_fuzz.py` throws a hundred thousand of them, and at C-STORE, too.
"""

import pytest

from scanside.benchmarks import network_fuzz


def test_malformed_headers_are_the_two_errors_for_bad_input():
    found = network_fuzz.fuzz_headers(4000, seed=1)
    assert found["refused"] > found["read"] > 0


@pytest.mark.parametrize(("name", "count"), [("zmq", 1500), ("afni", 120)])
def test_a_source_outlives_what_is_malformed(name: str, count: int):
    found = getattr(network_fuzz, f"fuzz_{name}")(count, seed=1)
    assert found["refused"] > count // 4
