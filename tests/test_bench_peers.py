"""The peers do the same work as a bundle, and the gate tells when an advantage has shrunk."""

import argparse
import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/, which is no package, as a benchmark does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


@pytest.fixture
def task(tiny_checkpoint: Path, tiny_bundle: Path) -> argparse.Namespace:
    """What a contender is told about random weights that are exported without loss."""
    return argparse.Namespace(
        checkpoint=tiny_checkpoint,
        bundle=str(tiny_bundle),
        volumes=[tiny_bundle / "golden/volume.nii.gz"],
        threads=1,
        steps=None,
        tokens=None,
    )


@pytest.mark.parametrize("piece", ["encoder", "text", "picture", "chain"])
def test_every_peer_gives_the_answer_of_the_bundle(
    piece: str, task: argparse.Namespace, benchmark: Any
):
    import torch

    contender, agreement = benchmark("contender"), benchmark("agreement")
    threads = torch.get_num_threads()
    try:
        found = {}
        for name, make in (("scanside", contender.scanside), ("fp32", contender.peer)):
            answers = make(argparse.Namespace(**vars(task), piece=piece, name=name))(0)
            found[name] = {k: np.asarray(v) for k, v in answers if v is not None}
    finally:
        torch.set_num_threads(threads)
    apart = agreement.distance(found["fp32"], found["scanside"])
    assert set(found["fp32"]) == set(found["scanside"])
    assert len(apart) == len(found["fp32"]), "every part of the answer is compared"
    assert agreement.agree(apart), apart
    assert agreement.same_size(found["fp32"], found["scanside"])
    # float32 on both sides: far nearer than what is allowed
    assert all(value < 1e-3 for name, value in apart.items() if name.endswith("_difference"))
    assert all(value > 40 for name, value in apart.items() if name.endswith("_db"))


def test_other_answers_do_not_agree(benchmark: Any):
    agreement, rng = benchmark("agreement"), np.random.default_rng(0)
    picture = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    wanted = {"clip": np.ones((1, 4), "f4"), "image": picture, "text": np.array("a red circle")}
    assert agreement.agree(agreement.distance(wanted, copy.deepcopy(wanted)))
    for name, other in (
        ("clip", np.full((1, 4), 1.2, "f4")),
        ("image", 255 - picture),
        ("text", np.array("a blue circle")),
    ):
        assert not agreement.agree(agreement.distance(wanted, wanted | {name: other})), name
    assert agreement.same_size(wanted, wanted | {"image": 255 - picture})
    assert not agreement.same_size(wanted, wanted | {"clip": np.full((1, 4), np.nan, "f4")})
    assert not agreement.same_size({"tokens": np.array(7)}, {"tokens": np.array(8)})


def test_workers_take_turns_on_the_same_inputs(
    tmp_path: Path, benchmark: Any, monkeypatch: pytest.MonkeyPatch
):
    turns = benchmark("turns")
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)
    log = tmp_path / "log"
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys\n"
        "done = {'seconds': 0.5, 'answers': {'image': 0.25}, 'peak_mib': 7}\n"
        "print(json.dumps(done), flush=True)\n"
        "for line in sys.stdin:\n"
        f"    open({str(log)!r}, 'a').write(sys.argv[1] + ' ' + line)\n"
        "    print(json.dumps(done), flush=True)\n"
    )
    workers = {name: turns.Worker([str(script), name], 1) for name in ("a", "b")}
    found = turns.by_turns(workers, [3, 5], rounds=4, warm_up=1)
    for worker in workers.values():
        worker.close()
    lines = [line.split() for line in log.read_text().splitlines()]
    rounds = [lines[i : i + 2] for i in range(0, len(lines), 2)]
    assert all({name for name, *_ in pair} == {"a", "b"} for pair in rounds)
    assert [pair[0][2] for pair in rounds] == [pair[1][2] for pair in rounds] == list("53535")
    assert len({tuple(name for name, *_ in pair) for pair in rounds}) == 2, "the order changes"
    assert found["a"].seconds == [0.5] * 4
    assert found["b"].answers == {"image": [0.25] * 4}
    assert all(worker.cold_s > 0 for worker in workers.values())


def test_a_worker_that_dies_ends_the_benchmark(tmp_path: Path, benchmark: Any):
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"worker.py: ended with 3"):
        benchmark("turns").Worker([str(script)], 1)


def run_with(low: float, high: float, memory: float = 3.0) -> dict[str, Any]:
    ours = {"piece": "text", "contender": "scanside"}
    peer = {"piece": "text", "contender": "transformers fp32", "memory_times_ours": memory}
    peer["times_ours"] = {"ratio": (low * high) ** 0.5, "interval": [low, high], "rounds": 50}
    about = {"cpu": "a", "cores": 2, "threads": 2, "bundle": "reference", "steps": None}
    return {**about, "rows": [ours, peer]}


@pytest.mark.parametrize(
    ("now", "passed"),
    [
        ((2.9, 3.3), True),
        ((2.5, 2.85), True),  # the intervals still touch
        ((2.2, 2.7), False),
        ((5.0, 6.0), True),
    ],
)
def test_a_ratio_falls_only_when_its_interval_lies_below_the_stored_one(
    now: tuple[float, float], passed: bool, benchmark: Any
):
    gate = benchmark("gate")
    judged = gate.judge(run_with(2.8, 3.2), run_with(*now))
    assert [one.passed for one in judged] == [passed, True]
    assert ("FALLEN" in "\n".join(gate.verdicts(judged))) is not passed


def test_memory_that_grows_and_a_peer_that_is_missing_fail_the_gate(benchmark: Any):
    gate, stored = benchmark("gate"), run_with(2.8, 3.2)
    judged = gate.judge(stored, run_with(2.8, 3.2, memory=2.0))
    assert [one.passed for one in judged] == [True, False]
    missing = stored | {"rows": stored["rows"][:1]}
    assert [one.passed for one in gate.judge(stored, missing)] == [False]
    few = copy.deepcopy(stored)
    few["rows"][1]["times_ours"] = None
    assert [one.now for one in gate.judge(stored, few)] == ["not measured"]


def test_other_work_or_nothing_stored_is_no_gate(tmp_path: Path, benchmark: Any):
    gate, stored = benchmark("gate"), run_with(2.8, 3.2)
    with pytest.raises(SystemExit, match="threads was 2, is 4"):
        gate.judge(stored, stored | {"threads": 4})
    with pytest.raises(SystemExit, match="store a run of a quiet machine with python"):
        gate.read_stored(tmp_path / "peers.json")


def test_a_bundle_that_is_not_from_the_checkpoint_is_not_timed(
    task: argparse.Namespace, tmp_path: Path, benchmark: Any
):
    peers = benchmark("peers")
    args = argparse.Namespace(**vars(task), dtypes=["fp32"], compiled=False, by_size=False)
    match = peers.Match("encoder", args, tmp_path)
    for name, value in (("PyTorch fp32", 1.0), ("scanside", 1.5)):
        np.savez(tmp_path / f"{name}.npz", clip=np.full((1, 4), value, "f4"))
    inputs = match._agreeing("PyTorch fp32", "PyTorch fp32", [tmp_path / "PyTorch fp32.npz"], [])
    assert inputs == [0]
    with pytest.raises(SystemExit, match="differ, so nothing is timed.*exported from"):
        match._agreeing("PyTorch fp32", "scanside", [tmp_path / "scanside.npz"], inputs)


def test_modules_of_the_benchmarks_hide_none_of_the_standard_library():
    assert not {path.stem for path in BENCHMARKS.glob("*.py")} & sys.stdlib_module_names
