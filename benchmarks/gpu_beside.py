"""The language model beside the U-Net on one GPU: what each costs the other, and what helps.

    python benchmarks/gpu_beside.py SCRATCH --json benchmarks/results/gpu_beside.json

SCRATCH is the folder in which `gpu_suite.py` has drawn the weights and written the language model.
The U-Net's steps and the model's tokens are timed alone, then at the same time: on streams of equal
priority, with the U-Net's at the highest, as the decoder has it, and with the U-Net's on a part of
the multiprocessors (a green context). llama.cpp makes its own stream, of the lowest priority, on
all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_language import PREFIX_ROWS, PROMPT_TOKENS, apart, language_spec
from gpu_measure import repeated, summary
from gpu_networks import inputs_of
from gpu_prepare import language_file
from timing import machine, write

from scanside.kernels.cuda_driver import call, driver
from scanside.runtime.engines.driver import probe
from scanside.runtime.engines.gpu import Gpu
from scanside.runtime.engines.onnx_cuda import HALF_OPTIONS, OnnxCudaEngine
from scanside.runtime.errors import DeviceError
from scanside.runtime.language import LanguageModel

Json = dict[str, Any]
MakeStream = Callable[[], Any]
SHARES = (0.75, 0.5)
"""Of the multiprocessors, for the U-Net."""


def of_equal_rights() -> Any:
    """A stream of the priority that llama.cpp's has."""
    return call("cuStreamCreate", int(driver().CUstream_flags.CU_STREAM_NON_BLOCKING.value))


@contextmanager
def on_a_part(number: int, share: float) -> Generator[tuple[MakeStream, int]]:
    """What makes a stream on a share of a GPU's multiprocessors, and how many these are."""
    api = driver()
    device = call("cuDeviceGet", number)
    whole = call("cuDeviceGetDevResource", device, api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)
    wanted = int(whole.sm.smCount * share)
    # the driver rounds up to what the architecture can part; kernels of cuDNN come in clusters
    clusters = (
        api.CUdevSmResourceSplitByCount_flags.CU_DEV_SM_RESOURCE_SPLIT_MAX_POTENTIAL_CLUSTER_SIZE
    )
    (part, *_), _, _ = call("cuDevSmResourceSplitByCount", 1, whole, int(clusters.value), wanted)
    described = call("cuDevResourceGenerateDesc", [part], 1)
    kind = api.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    green = call("cuGreenCtxCreate", described, device, int(kind.value))
    flags = int(api.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
    try:
        yield partial(call, "cuGreenCtxStreamCreate", green, flags, 0), part.sm.smCount
    finally:
        call("cuGreenCtxDestroy", green)


class Speaker(threading.Thread):
    """Writes token after token until it is stopped, and times each."""

    def __init__(self, language: LanguageModel, width: int) -> None:
        super().__init__(daemon=True)
        rng = np.random.default_rng(3)
        prefix = (0.02 * rng.standard_normal((PREFIX_ROWS, width))).astype(np.float32)
        self._trunk = language.open_trunk()
        self._trunk.attend(prefix)
        question = "Describe the image in detail, and where each thing stands. " * 4
        self._prompt = language.first_turn(question)[:PROMPT_TOKENS]
        self._room = language.spec.context - len(self._trunk) - len(self._prompt) - 2
        self._over = threading.Event()
        self.seconds: list[float] = []
        self.failed = ""

    def run(self) -> None:
        branch = self._trunk.branches[0]
        try:
            while not self._over.is_set():
                branch.begin(self._prompt)
                for _ in range(self._room):
                    if self._over.is_set():
                        return
                    began = time.perf_counter()
                    branch.append(int(branch.logits().argmax()))
                    branch.logits()  # waits
                    self.seconds.append(time.perf_counter() - began)
        except Exception as exc:  # told by whoever stops it
            self.failed = str(exc)

    def stop(self) -> list[float]:
        """End it; times of its tokens in seconds."""
        self._over.set()
        self.join()
        if self.failed:
            raise SystemExit(f"the language model failed beside the U-Net: {self.failed}")
        return self.seconds


def timed(args: Namespace, make_stream: MakeStream | None, language: LanguageModel | None) -> Json:
    """Steps of the U-Net on a stream, beside a model that writes if there is one."""
    gpu = Gpu.open(make_stream=make_stream)
    engine = OnnxCudaEngine("unet", args.scratch / "full/unet.onnx", gpu, options=HALF_OPTIONS)
    try:
        engine.run(inputs_of(engine))

        def step() -> None:
            engine.launch()
            gpu.wait()

        repeated(step, 10, warm=5)
        speaker = Speaker(language, args.width) if language else None
        if speaker:
            speaker.start()
            time.sleep(0.2)
            speaker.seconds.clear()
        row: Json = {"unet_ms": summary(repeated(step, args.runs, warm=5))}
        if speaker:
            row["token_ms"] = summary(speaker.stop())
        return row
    finally:
        engine.close()
        gpu.close()


@contextmanager
def language_of(args: Namespace) -> Generator[LanguageModel]:
    """The language model that the suite has written."""
    path = language_file(args.scratch, "q4_k_m")
    spec = language_spec(path, args.width)
    with closing(LanguageModel(path, spec, threads=args.threads, device="cuda")) as language:
        yield language


def on_streams(args: Namespace) -> list[Json]:
    """Each alone, both at once, and both with the U-Net's stream at the highest priority."""
    with language_of(args) as language:
        alone = Speaker(language, args.width)
        alone.start()
        time.sleep(2.0)
        return [
            {"what": "tokens alone", "token_ms": summary(alone.stop())},
            {"what": "U-Net alone", **timed(args, None, None)},
            {"what": "both", **timed(args, of_equal_rights, language)},
            {"what": "U-Net of high priority", **timed(args, None, language)},
        ]


def on_share(args: Namespace) -> list[Json]:
    """The U-Net on a share of the multiprocessors, alone and beside the language model."""
    with language_of(args) as language, on_a_part(0, args.share) as (make_stream, count):
        what = f"U-Net on {count} multiprocessors"
        return [
            {"what": f"{what}, alone", **timed(args, make_stream, None)},
            {"what": f"{what}, both", **timed(args, make_stream, language)},
        ]


def measured(args: Namespace) -> list[Json]:
    """All rows, each way in a process of its own: one that dies takes no other with it."""
    rows: list[Json] = []
    words = [sys.executable, str(Path(__file__).resolve()), str(args.scratch)]
    for name in ("width", "threads", "runs"):
        words += [f"--{name}", str(getattr(args, name))]
    for share in (None, *SHARES):
        what = "on streams" if share is None else f"U-Net on {share:.0%} of the GPU"
        answer = args.scratch / "parts" / f"beside {what}.json".replace(" ", "_")
        given = ["--share", str(0.0 if share is None else share), "--answer", str(answer)]
        found = apart([*words, *given], answer)
        if "died" in found:
            rows.append({"what": what, "failed": found["died"], "last_words": found["log"][-5:]})
        else:
            rows += found["rows"]
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def beside_part(args: Namespace, _: str) -> Json:
    """The same as a part of the suite."""
    given = {"width": 256 if args.small else 4096, "runs": max(int(200 * args.scale), 3)}
    rows = measured(Namespace(scratch=args.scratch, threads=args.threads, **given))
    return {row["what"]: {k: v for k, v in row.items() if k != "what"} for row in rows}


def main() -> int:
    """Measure, and print one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--width", type=int, default=4096, help="of the language model")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of llama.cpp")
    parser.add_argument("--runs", type=int, default=200, help="timed steps of the U-Net")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result here")
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        found = on_share(args) if args.share else on_streams(args)
        args.answer.write_text(json.dumps({"rows": found}))
        return 0
    about = machine()
    try:
        card = probe().gpus[0].name
    except DeviceError as exc:
        print(exc, file=sys.stderr)
        return 1
    rows = measured(args)
    question = "the language model beside the U-Net on one GPU: what each costs the other"
    write({"question": question, **about, "gpu": card, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
