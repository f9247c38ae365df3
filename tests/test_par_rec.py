"""PAR/REC: nibabel's and dcm2niix's reading of the same pair, whole runs and one pair a volume."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest

from scanside.runtime.realtime.file_source import FileSource
from scanside.runtime.realtime.par_rec import ParRecFile, read_par_rec
from scanside.runtime.realtime.par_rec_writer import par_rec_files
from scanside.runtime.realtime.run_file import RunFile, open_run
from scanside.runtime.realtime.source import IncompleteVolume, UnreadableVolume
from scanside.runtime.realtime.volume_writer import WrittenVolume

SAMPLES = Path(nib.__file__).parent / "tests/data"
REAL = ["phantom_EPI_asc_CLEAR_2_1", "phantom_truncated", "phantom_varscale"]


@pytest.fixture
def volumes(small_run: Callable[..., Path]) -> list[WrittenVolume]:
    run = RunFile(small_run(3))
    recorded = [data - 700 for data in run.read()]  # a REC has no sign
    for data in recorded:
        data[0, 0, 0] = -700  # and one zero for all volumes is one scale for all
    return [
        WrittenVolume(
            data=data,
            affine=run.affine,
            slope=2.0,
            inter=3.0,
            tr_s=1.6,
            number=number,
            series=5,
            acquired_s=1.6 * number,
        )
        for number, data in enumerate(recorded)
    ]


def canonical(data, affine):
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(data, np.float64), affine))
    return image.get_fdata(), image.affine


@pytest.mark.filterwarnings("ignore")  # nibabel's, of runs that were broken off
@pytest.mark.parametrize("name", REAL)
def test_a_real_pair_is_read_as_nibabel_reads_it(name: str):
    run = open_run(SAMPLES / f"{name}.PAR")
    theirs = nib.load(SAMPLES / f"{name}.PAR", permit_truncated=True, strict_sort=True)
    assert isinstance(run, ParRecFile)
    assert (*run.shape, run.volumes) == theirs.shape
    assert run.tr_s == 2.0
    np.testing.assert_allclose(run.affine, theirs.affine)
    values = theirs.get_fdata()
    for number, data in enumerate(run.read()):
        # where slices have scales of their own the result is float32
        np.testing.assert_allclose(
            data * run.slope + run.inter, values[..., number], rtol=1e-6, atol=1e-3
        )


def test_what_is_written_is_what_dcm2niix_reads(volumes, tmp_path: Path):
    par, rec = par_rec_files(volumes)
    (tmp_path / "run.PAR").write_bytes(par)
    (tmp_path / "run.REC").write_bytes(rec)
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-p", "n", "-f", "out", "-o", str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "run.PAR")], check=True, capture_output=True)
    image = nib.load(tmp_path / "out.nii")
    run = ParRecFile(tmp_path / "run.PAR")
    for number, data in enumerate(run.read()):
        ours, place = canonical(data * run.slope + run.inter, run.affine)
        theirs, their_place = canonical(image.get_fdata()[..., number], image.affine)
        truth, true_place = canonical(volumes[number].data * 2.0 + 3.0, volumes[number].affine)
        np.testing.assert_allclose(place, their_place, atol=1e-3)
        np.testing.assert_allclose(place, true_place, atol=1e-5)
        np.testing.assert_allclose(ours, truth, atol=1e-3)
        np.testing.assert_allclose(theirs, truth, atol=1e-3)


def test_one_pair_a_volume_is_a_frame_numbered_by_its_name(volumes):
    par, rec = par_rec_files([volumes[1]])
    frame = read_par_rec(par, rec, name="Dump-0002.par", arrived_s=1.5)
    assert (frame.number, frame.tr_s, frame.arrived_s) == (1, 1.6, 1.5)
    assert frame.acquired_s == pytest.approx(1.6)
    ours, place = canonical(frame.data * frame.slope + frame.inter, frame.affine)
    truth, true_place = canonical(volumes[1].data * 2.0 + 3.0, volumes[1].affine)
    np.testing.assert_allclose(ours, truth, atol=1e-3)
    np.testing.assert_allclose(place, true_place, atol=1e-5)


def test_a_pair_that_is_not_whole_is_waited_for(volumes):
    par, rec = par_rec_files([volumes[1]])
    for cut, pixels in ((par[:500], rec), (par, b""), (par, rec[:-1])):
        with pytest.raises(IncompleteVolume) as missing:
            read_par_rec(cut, pixels, name="Dump-0002.par", arrived_s=0.0)
        assert missing.value.number == 1


def test_a_whole_run_among_live_pairs_is_refused_with_what_to_do(volumes):
    par, rec = par_rec_files(volumes)
    with pytest.raises(UnreadableVolume, match="exported after its run; play it with"):
        read_par_rec(par, rec, name="run_1.par", arrived_s=0.0)


def test_damaged_pars_are_an_answer_never_a_crash(volumes):
    par, rec = par_rec_files([volumes[0]])
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(par)
        for place in rng.integers(0, len(par), 4):
            damaged[place] = rng.integers(256)
        try:
            assert read_par_rec(bytes(damaged), rec, name="a1.par", arrived_s=0.0).data.ndim == 3
        except (IncompleteVolume, UnreadableVolume):
            pass


def test_a_recorded_pair_is_a_source_and_names_nobody(volumes, tmp_path: Path):
    par, rec = par_rec_files(volumes)
    named = par.replace(b"name                       :   -", b"name : Doe^Jane", 1)
    assert b"Doe" in named
    (tmp_path / "run.par").write_bytes(named)
    (tmp_path / "run.rec").write_bytes(rec)
    source = FileSource(tmp_path / "run.par")
    frames = [frame for _ in range(3) for frame in source.poll(0.0)]
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert source.exhausted
    assert "Doe" not in repr(frames)


def test_a_pair_of_which_one_lacks_or_is_cut_is_one_sentence(volumes, tmp_path: Path):
    par, rec = par_rec_files(volumes)
    (tmp_path / "run.par").write_bytes(par)
    with pytest.raises(ValueError, match=r"run\.rec: no such file; a PAR and its REC"):
        ParRecFile(tmp_path / "run.par")
    (tmp_path / "run.rec").write_bytes(rec[:-2])
    with pytest.raises(ValueError, match=r"run\.rec is truncated: \d+ of \d+ bytes"):
        ParRecFile(tmp_path / "run.par")
    (tmp_path / "run.par").write_bytes(b"no PAR")
    with pytest.raises(ValueError, match="a damaged PAR"):
        ParRecFile(tmp_path / "run.par")
