"""A long-lived process that opens and closes bundles does not grow by it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, gc, sys
from scanside.runtime import Decoder
from scanside.runtime.bench.host_memory import host_memory

def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later is not in use
    return host_memory()["anonymous"]

closed = []  # a closed decoder that somebody still holds

def decode_once():
    with Decoder.open(sys.argv[1]) as decoder:
        closed.append(decoder)
        decoder.decode(sys.argv[2])
        return held()

decode_once()
closed.clear()
before = held()
opened = [decode_once() for _ in range(4)]
print(before, held(), *opened)
closed.clear()
print(held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is of glibc")
def test_a_closed_decoder_gives_its_memory_back(tiny_bundle: Path):
    volume = tiny_bundle / "golden" / "volume.nii.gz"
    run = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(tiny_bundle), str(volume)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, closed, first, *_, gone = map(int, run.stdout.split())
    one = first - before
    # the graphs and the language model are freed by closing, the rest with the decoder
    assert closed - before < 4 * one / 2
    assert gone - before < one / 2
