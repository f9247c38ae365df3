"""The demo's page: every value is on it, and it needs nothing but itself."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scanside.runtime.demo.captions import compare
from scanside.runtime.demo.outcome import Outcome, correlation
from scanside.runtime.demo.page import Facts, render
from scanside.runtime.demo.slices import draw_brain
from scanside.runtime.demo.trials import Trial

VOID = {"meta", "img", "br", "link", "input", "hr"}
TRUTH = "a large red circle at the top left on a grey background"
FACTS = Facts(
    bundle="reference",
    identity="0123456789abcdef" * 4,
    created="2026-01-02",
    machine="Some CPU <8 cores>",
    threads=2,
    steps=8,
    schedule="ddim",
    producer={"onnxruntime": "1.31.1"},
    input_units="percent signal change",
)
QUALITY = {
    "scores": {
        "trials": 432,
        "rows": [
            {
                "what": "caption is right",
                "condition": "seen, single trial",
                "compiled": 0.9312,
                "pytorch": 0.9287,
                "oracle": 0.9721,
                "chance": 0.0013,
                "mean_image": None,
            }
        ],
    }
}


class Reader(HTMLParser):
    """Collects text and addresses, and fails on a tag that does not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    reader.text = re.sub(r"\s+", " ", reader.text)
    return reader


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(9, 11, 7)).astype(np.float32)
    scene = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Outcome(
        trial=Trial(
            name="trial-07",
            subject="S4",
            seen=False,
            average_of=3,
            volume=Path("trial-07.nii.gz"),
            scene=Path("trial-07.png"),
            caption=TRUTH,
        ),
        brain=draw_brain(volume, np.eye(4), np.ones(volume.shape, bool)),
        scene=scene,
        preview=255 - scene,
        image=scene,
        caption=compare(TRUTH, "a small red circle at the top left"),
        prompt="red & round",
        latency_ms={"preprocess": 51.4, "encode": 14.2, "language": 130.0, "total": 203.6},
    )


def test_every_value_is_on_the_page(outcome: Outcome):
    text = read(render([outcome], QUALITY, FACTS)).text
    for expected in (
        *("Trial 07", "subject S4, never seen in training", "mean of 3 trials", TRUTH),
        *("colour and shape of 1 of 1 named", "missed: grey background", "red & round"),
        *("r = -1.00", "r = 1.00", "preprocess 51", "encode 14", "total 204 ms"),
        *("432 held-out trials", "caption is right", "0.931", "0.929", "0.972", "0.001"),
        *("Some CPU <8 cores>", "2 threads", "0123456789abcdef", "onnxruntime 1.31.1"),
    ):
        assert expected in text


def test_wrong_and_right_words_are_told_apart(outcome: Outcome):
    page = render([outcome], QUALITY, FACTS)
    assert '<span class="wrong" title="wrong">small</span>' in page
    assert '<span class="right">red</span>' in page


def test_the_page_needs_nothing_else(outcome: Outcome):
    page = render([outcome, replace(outcome, prompt="")], QUALITY, FACTS)
    reader = read(page)
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in reader.addresses)
    assert {a[1:] for a in reader.addresses if a.startswith("#")} <= set(reader.ids)
    assert not re.search(r"https?://|<script|@import|url\(", page)


def test_the_page_says_that_the_world_is_synthetic(outcome: Outcome):
    text = read(render([outcome], QUALITY, FACTS)).text
    assert "synthetic world" in text
    assert "does not show how well a real brain can be decoded" in text


def test_scores_that_do_not_exist_are_dashes(outcome: Outcome):
    page = render([outcome], QUALITY, FACTS)
    assert '<td class="n none" data-of="mean image">–</td>' in page


def test_other_figures_of_the_manifest_are_left_out(outcome: Outcome):
    other = {"sizes": {"rows": [{"file": "language.gguf", "bytes": 7}]}, "steps": {"ms": 5}}
    assert render([outcome], {**QUALITY, **other}, FACTS) == render([outcome], QUALITY, FACTS)


def test_correlation_is_pearsons_over_pixels_and_sizes():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 255, (2, 12, 12, 3), dtype=np.uint8)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert correlation(a.repeat(2, 0).repeat(2, 1), a) > 0.9
    assert correlation(np.full_like(a, 7), a) == 0
