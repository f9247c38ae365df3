"""The results page: generated, every row with its origin, and up to date."""

import importlib
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scanside.runtime.bench import summarise_ms

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ABOUT = {
    "question": "how long?",
    "cpu": "Abacus 9000",
    "cores": 2,
    "python": "3.11.7",
    "versions": {"scanside": "0.1.0", "numpy": "2.4.6"},
    "commit": "abc1234",
    "date": "2026-11-25",
    "load_before": 0.1,
    "command": "python benchmarks/how_long.py",
}
ORIGIN = ("Abacus 9000, 2 cores", "scanside 0.1.0, numpy 2.4.6", "abc1234", "2026-11-25")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("page", "tables", "plots", "graph_work", "roofline")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def summary(runs: int, seed: int = 0) -> dict[str, Any]:
    return summarise_ms(0.1 * np.random.default_rng(seed).lognormal(sigma=0.1, size=runs))


def of_bench(*, under_load: bool = False) -> dict[str, Any]:
    variant = {
        "answers_ms": {"image": summary(120), "total": summary(120, 1)},
        "stages_ms": {"encode": summary(120, 2)},
        "engines_ms": {"encoder": summary(120, 3)},
        "own_ms": summary(120, 4),
        "own_share": 0.031,
        "missed": {"0.8": {"image": 0.25, "total": 0.5}},
        "degraded": {},
    }
    load = {"others_cores": 1.25 if under_load else 0.01, "under_load": under_load}
    cold = {"answers_ms": {"total": summary(5)}, "memory_mib": {"peak": 180.0, "anonymous": 120.0}}
    return {
        **ABOUT,
        "threads": 2,
        "bundles": {"reference": {"bytes": 2**24, "sha256": "0123456789abcdef"}},
        "warm": {**load, "variants": {"file": variant, "file again": variant, "array": variant}},
        "noise": {"total": {"factor": 1.02, "rounds": 120}},
        "ratios": [],
        "cold": {**load, "bundles": {"reference": cold}},
    }


def of_peers() -> dict[str, Any]:
    peer = {
        "piece": "text",
        "contender": "transformers fp32",
        "ms": summary(50),
        "times_ours": {"ratio": 3.1, "interval": [2.8, 3.4], "rounds": 50},
        "memory_times_ours": 3.0,
        "cold_times_ours": 4.2,
        "peak_mib": 500.0,
        "cold_ms": summary(5),
        "others_cores": 0.0,
        "under_load": False,
    }
    within = {**peer, "contender": "other", "times_ours": {"interval": [0.9, 1.1], "rounds": 50}}
    return {**ABOUT, "rows": [peer, within], "noise": {"text": {"factor": 1.01, "rounds": 50}}}


def of_roofline() -> dict[str, Any]:
    row = {
        "graph": "encoder",
        "ms": summary(50),
        "floor_ms": 20.0,
        "bound_by": "arithmetic",
        "times_floor": 5.0,
        "gflop": 1.0,
        "weights_mib": 4.0,
    }
    return {**ABOUT, "others_cores": 0.0, "under_load": False, "limits": {"GB/s": 20.0},
            "rows": [row]}  # fmt: skip


def of_quality() -> dict[str, Any]:
    scores = {"pixcorr": 0.9, "ssim": 0.8, "two_way": 1.0, "ms": summary(30)}
    steps = [{"schedule": name, "steps": n, **scores} for name in ("ddim", "lcm") for n in (1, 8)]
    starts = [{"beta": b, "text": t, **scores} for b in (0.6, 1.0) for t in ("written", "none")]
    return {**ABOUT, "trials": 60, "schedules": steps, "starts": starts}


def of_options() -> dict[str, Any]:
    row = {
        "precision": "fp32",
        "quantize": "q8_0",
        "score": 0.9,
        "memory_mib": 150.0,
        "size_mib": 17.0,
        "latency_ms": {"runs": 20, "p50": 90.0, "p95": 99.0, "max": 101.0},
    }
    fast = {"precision": "int8", "latency_ms": {"runs": 20, "p50": 60.0, "p95": 63.0, "max": 70.0}}
    rows = [{**row, "steps": 8, "front": True}, {**row, **fast, "steps": 1, "front": False}]
    choices = [{"target latency ms": 80.0, "least score": None, "chosen": "int8, q8_0, 1 step"}]
    return {**ABOUT, "others_cores": 0.0, "under_load": False, "trials": 120, "choices": choices,
            "noise": {"1": 1.02, "8": None}, "rows": rows}  # fmt: skip


def of_another() -> dict[str, Any]:
    rows = [{"what": "caption | text", "score": 0.91, "ms": summary(30)}, {"what": "image"}]
    return {**ABOUT, "trials": 500, "decode_ms": summary(30), "rows": rows}


MAKERS = (of_bench, of_peers, of_roofline, of_quality, of_options, of_another)


@pytest.mark.parametrize("make", MAKERS)
def test_every_row_says_on_what_and_when_it_was_measured(
    make: Any, modules: SimpleNamespace, tmp_path: Path
):
    (tmp_path / "one.json").write_text(json.dumps(make()))
    files = modules.page.page(tmp_path)
    lines = files["README.md"].splitlines()
    assert "## how long?" in lines
    assert any(
        "`python benchmarks/how_long.py`" in line and "results/one.json" in line for line in lines
    )
    rows = [
        line
        for above, line in zip(lines, lines[1:], strict=False)
        if line.startswith("| ") and above.startswith("|")
    ]
    assert rows
    for row in rows:
        assert all(part in row for part in ORIGIN), row
    for name, plot in files.items():
        if name.endswith(".svg"):
            assert f"]({name})" in files["README.md"]
            assert ElementTree.fromstring(plot).tag.endswith("svg")
    assert modules.page.page(tmp_path) == files, "the same results give the same bytes"


def test_a_percentile_with_too_few_runs_says_how_many_it_needs(
    modules: SimpleNamespace, tmp_path: Path
):
    (tmp_path / "one.json").write_text(json.dumps(of_bench()))
    page = modules.page.page(tmp_path)["README.md"]
    assert "needs 1000" in page
    assert "| runs |" in page
    assert "file again" not in page
    assert "Noise, the same variant twice: total 2.0%" in page


def test_a_machine_under_load_is_told_in_the_row(modules: SimpleNamespace, tmp_path: Path):
    (tmp_path / "one.json").write_text(json.dumps(of_bench(under_load=True)))
    assert "**others took 1.25 cores**" in modules.page.page(tmp_path)["README.md"]
    (tmp_path / "one.json").write_text(json.dumps({**of_another(), "load_before": 3.0}))
    assert "**3.00 before**" in modules.page.page(tmp_path)["README.md"]


def test_a_ratio_within_the_noise_has_no_number_and_no_bar(
    modules: SimpleNamespace, tmp_path: Path
):
    (tmp_path / "one.json").write_text(json.dumps(of_peers()))
    files = modules.page.page(tmp_path)
    assert "within the noise | 0.9, 1.1" in files["README.md"]
    assert "transformers fp32" in files["results/one.svg"]
    assert "other" not in files["results/one.svg"]


def test_options_are_dots_and_only_the_front_is_a_line(modules: SimpleNamespace, tmp_path: Path):
    (tmp_path / "one.json").write_text(json.dumps(of_options()))
    files = modules.page.page(tmp_path)
    plot = files["results/one.svg"]
    assert plot.count("<polyline") == 1
    assert plot.count("<circle") == 3
    front, chosen, everything = files["README.md"].split("\n\n| ")[-3:]
    assert "| 8 |" in front
    assert "int8, q8_0, 1 step" in chosen
    assert everything.index("| 1 |") < everything.index("| 8 |"), "the fastest first"
    assert "1 steps 2.0%, 8 steps not known" in files["README.md"]


def test_the_page_in_the_repository_is_what_the_results_give(modules: SimpleNamespace):
    wanted = modules.page.page(BENCHMARKS / "results")
    for name, text in wanted.items():
        assert (BENCHMARKS / name).read_text() == text, f"benchmarks/{name}: run make bench-page"


def test_work_of_a_graph_is_counted_from_its_products(modules: SimpleNamespace, tmp_path: Path):
    from onnx import TensorProto, helper, numpy_helper, save

    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((8, 5), "f4"), "w")
    kernel = numpy_helper.from_array(np.ones((6, 3, 3, 3), "f4"), "k")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Conv", ["p", "k"], ["q"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["q"], ["r"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4, 8]), value("p", TensorProto.FLOAT, [1, 3, 10, 10])],
        [value("y", TensorProto.FLOAT, [1, 4, 5]), value("r", TensorProto.FLOAT, [1, 6, 10, 10])],
        [weight, kernel],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "g.onnx")
    work = modules.graph_work.onnx_work(tmp_path / "g.onnx")
    assert work.float_operations == 2 * (4 * 8 * 5) + 2 * (6 * 10 * 10) * (3 * 3 * 3)
    assert work.integer_operations == 0
    assert work.weight_bytes == 4 * (8 * 5 + 6 * 3 * 3 * 3)


def test_the_floor_is_the_slower_of_arithmetic_and_memory(modules: SimpleNamespace):
    limit = {"float32 GFLOP/s": 100.0, "int8 GOP/s": 400.0, "memory GB/s": 10.0, "cache MiB": 32.0}
    floor, work = modules.roofline.floor_ms, modules.graph_work.Work
    assert floor(work(2e9, 4e9, 2**20), limit) == (pytest.approx(30.0), "arithmetic")
    assert floor(work(1e6, 0.0, 10**9), limit) == (pytest.approx(100.0), "memory")
    # weights that stay in the cache are not read from memory
    assert floor(work(1e6, 0.0, 2**24), limit) == (pytest.approx(0.01), "arithmetic")
