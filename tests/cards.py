"""GPUs as a driver describes them: one that every backend has engines for, an old one, a data
centre's that TensorRT-RTX has nothing for."""

from scanside.runtime.engines.driver import Card

ADA = Card(
    number=0,
    name="NVIDIA GeForce RTX 4090",
    capability=(8, 9),
    memory_bytes=24 << 30,
    multiprocessors=128,
)
TURING = Card(
    number=0,
    name="NVIDIA T4",
    capability=(7, 5),
    memory_bytes=16 << 30,
    multiprocessors=40,
)
HOPPER = Card(
    number=0,
    name="NVIDIA H200",
    capability=(9, 0),
    memory_bytes=1 << 37,
    multiprocessors=132,
)
