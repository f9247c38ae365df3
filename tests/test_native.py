"""The native code: each instruction set, threads, and what guards its memory."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from scanside.kernels import Geometry, Resampler, resample_patchify, resize_matrix
from scanside.kernels.native import instruction_sets, native_code, resample_native, threads_for
from scanside.kernels.resample_reference import resample_reference

TURNED = np.array([[0.9, 0.2, -0.1, 3], [-0.1, 1.1, 0.3, -2.5], [0.2, -0.2, 0.8, 4], [0, 0, 0, 1]])
SHAPE, GRID = (31, 38, 27), (29, 33, 31)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("mapping", ["resize", "affine"])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float16", "float32"])
def test_every_instruction_set_equals_the_reference(instruction_set: str, mapping: str, dtype: str):
    rng = np.random.default_rng(0)
    volume = np.asfortranarray((rng.random(SHAPE) * 3000).astype(dtype))
    matrix = resize_matrix(SHAPE, GRID) if mapping == "resize" else TURNED
    for cube in (1, 2, 14):
        geometry = Geometry(grid=GRID, cube=cube, active=np.arange(18), pad="both")
        mean = rng.normal(1500, 100, geometry.shape).astype(np.float32)
        inv_std = rng.random(geometry.shape).astype(np.float32)
        expected = np.full(geometry.shape, np.nan)
        resample_reference(volume, geometry, matrix, 0.5, -3.0, mean, inv_std, 2.0, expected)
        for token_type, places in ((np.float32, 1e-6), (np.float16, 2**-11)):
            out = np.full((1, *geometry.shape), np.nan, token_type)
            resample_native(
                volume[None], geometry, matrix, 0.5, -3.0, mean, inv_std, 2.0, out,
                instruction_set=instruction_set,
            )  # fmt: skip
            # rounding is that of the values, before the mean is taken off
            np.testing.assert_allclose(out[0], expected, rtol=places, atol=1500 * 1e-6)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda d: d.__name__)
def test_short_tokens_are_rounded_to_nearest_even(instruction_set: str, dtype: type):
    """Every float16, what lies half-way between two, and any bits at all; a voxel a volume."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = np.sort(halves[np.isfinite(halves)].astype(np.float32))
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    halfway = (halves[:-1] + halves[1:]) / 2
    special = np.array([65519.9, 65520, -3.4e38], np.float32)
    values = np.concatenate([halves, halfway, bits.view(np.float32), special])
    values = values[np.isfinite(values)] + np.float32(0)  # + inter leaves no negative zero
    geometry = Geometry(grid=(1, 1, 1), cube=1, active=np.array([0]))
    out = np.zeros((values.size, 1, 1), dtype)
    resample_native(
        values.reshape(-1, 1, 1, 1), geometry, np.eye(4), 1.0, 0.0, None, None, 0.0, out,
        instruction_set=instruction_set,
    )  # fmt: skip
    with np.errstate(over="ignore"):
        expected = values.astype(dtype)
    wrong = out.ravel().view(np.uint16) != expected.view(np.uint16)
    assert not wrong.any(), values[wrong][:5]


def test_tokens_do_not_depend_on_the_number_of_threads():
    volume = np.random.default_rng(0).normal(size=(83, 104, 81)).astype(np.float32)
    geometry = Geometry(grid=(83, 104, 81), cube=14, active=np.arange(288))
    for matrix in (TURNED, resize_matrix(volume.shape, geometry.grid)):
        one, three = (
            resample_patchify(volume, geometry, model_to_source=matrix, threads=n) for n in (1, 3)
        )
        assert (one == three).all()


def test_no_idle_thread_is_left_spinning():
    tasks = Path("/proc/self/task")
    volume = np.zeros((83, 104, 81), np.int16)
    geometry = Geometry(grid=(83, 104, 81), cube=14, active=np.arange(288))
    resample = Resampler(geometry, threads=3)
    before = len(list(tasks.iterdir()))
    resample(volume, model_to_source=np.eye(4))
    assert len(list(tasks.iterdir())) == before


def test_little_work_takes_one_thread_and_much_no_more_than_asked_for():
    assert threads_for(1000, 8) == 1
    assert threads_for(1 << 30, 8) == 8
    assert threads_for(1 << 30, None) >= 1


def test_several_python_threads_may_resample_at_once():
    volume = np.random.default_rng(0).normal(size=(40, 41, 42)).astype(np.float32)
    geometry = Geometry(grid=(40, 40, 40), cube=10, active=np.arange(64))
    resample = Resampler(geometry, threads=1)
    expected = resample(volume, model_to_source=TURNED)
    found: list[bool] = []

    def work() -> None:
        for _ in range(5):
            found.append(bool((resample(volume, model_to_source=TURNED) == expected).all()))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 15


def test_other_python_threads_run_while_it_works():
    """Were Python's lock held, this thread would wake once the call is over."""
    volumes = np.zeros((16, 83, 104, 81), np.int16)
    geometry = Geometry(grid=(83, 104, 81), cube=14, active=np.arange(288))
    resample = Resampler(geometry, threads=1)
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        resample(volumes, model_to_source=TURNED)
        over.set()

    worker = threading.Thread(target=work)
    worker.start()
    begun.wait()
    wakes = 0
    while not over.is_set():
        time.sleep(0.001)
        wakes += 1
    worker.join()
    assert wakes >= 5


def test_the_native_code_refuses_what_would_leave_its_memory():
    corner, matrix = np.zeros((1, 3), np.int32), np.eye(4)[:3].copy()
    right: dict[str, object] = {
        "volume": np.zeros((1, 4, 4, 4), np.float32), "type": 3, "slope": 1.0, "inter": 0.0,
        "out": np.zeros(8, np.float32), "out_type": 3, "corner": corner, "cube": 2,
        "grid": (4, 4, 4), "matrix": matrix, "low": np.zeros(12, np.int32),
        "weight": np.zeros(12, np.float32), "outside": np.zeros(12, bool), "mean": None,
        "inv_std": None, "fill": 0.0, "threads": 1, "set": 0,
    }  # fmt: skip
    native_code().tokens(*right.values())
    for change, sentence in (
        ({"volume": np.zeros((4, 4, 4), np.float32)}, "'volume' has other axes"),
        ({"volume": np.zeros((1, 4, 4, 4), np.int16)}, "'volume' has other axes"),
        ({"volume": np.zeros((1, 4, 0, 4), np.float32)}, "'volume' has an empty axis"),
        ({"type": 9}, "unknown type of volume"),
        ({"out": np.zeros(7, np.float32)}, "'out' must have 32 bytes; got 28"),
        ({"out_type": 1}, "unknown type of tokens"),
        ({"corner": np.zeros((1, 2), np.int32)}, "'corner' must have 12 bytes"),
        ({"corner": None}, "has no len"),
        ({"cube": 0}, "'cube' must be"),
        ({"matrix": None}, "are needed"),
        ({"low": np.full(12, 3, np.int32)}, "'low' leads out of the volume"),
        ({"low": np.full(12, -1, np.int32)}, "'low' leads out of the volume"),
        ({"low": np.array([0, 2, 1, 0] * 3, np.int32)}, "'low' must rise or fall"),
        ({"weight": None}, "needs all of its tables"),
        ({"mean": np.zeros(9, np.float32)}, "'mean' must have 32 bytes; got 36"),
        ({"threads": 0}, "'threads' must be 1 to 1024"),
        ({"set": 99}, "lacks the instruction set"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            native_code().tokens(*(right | change).values())


def test_a_missing_extension_is_said_in_one_sentence_with_the_command():
    code = (
        "import sys; sys.modules['scanside.kernels._native'] = None\n"
        "import numpy as np\n"
        "from scanside.kernels import Geometry, Resampler\n"
        "geometry = Geometry(grid=(1, 1, 1), cube=1, active=np.array([0]))\n"
        "Resampler(geometry, impl='reference')\n"
        "try: Resampler(geometry)\n"
        "except ImportError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is not built; run 'pip install --no-deps -e .'" in done.stdout
