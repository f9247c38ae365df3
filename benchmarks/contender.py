"""One contender of peers.py, in a process of its own; see turns.py for what it is told.

    python benchmarks/contender.py chain scanside CHECKPOINT BUNDLE VOLUME ...

Every contender of a piece is given the same: the encoder tokens, the text a prefix, the picture a
prompt, a CLIP vector and a latent, the chain a file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PIECES = ("encoder", "text", "picture", "chain")
PROMPT = "small red circle top left, large blue ring centre, grey background"
TASK = "caption"
Work = Callable[[int], Iterator[tuple[str, Any]]]
"""Makes one answer after the other, by name, of the input of a number."""


def golden(args: argparse.Namespace) -> dict[str, Any]:
    """What the encoder gave for the bundle's golden volume in PyTorch, and its tokens."""
    from scanside.runtime.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    assert bundle.manifest.golden is not None
    arrays = bundle.arrays(bundle.manifest.golden.outputs)
    shape = bundle.manifest.encoder.inputs["tokens"].shape
    return arrays | {"tokens": np.ascontiguousarray(arrays["tokens"].reshape(shape), np.float32)}


def scanside(args: argparse.Namespace) -> Work:
    """The compiled bundle; for one piece only the stages that it needs are opened."""
    make = {"encoder": our_encoder, "text": our_text, "picture": our_picture, "chain": our_chain}
    return make[args.piece](args)


def our_encoder(args: argparse.Namespace) -> Work:
    """Tokens to clip, latent and prefix."""
    from scanside.runtime.bundle import Bundle
    from scanside.runtime.devices import stage_devices
    from scanside.runtime.opened_graphs import open_stage

    bundle, given = Bundle.open(args.bundle), golden(args)
    file = bundle.manifest.encoder.file
    engine = open_stage(bundle, stage_devices("cpu"), args.threads, "encoder", file)

    def work(_: int) -> Iterator[tuple[str, Any]]:
        found = engine.run({"tokens": given["tokens"]})
        # a bundle that locates concepts also hands on a hidden state, which no peer gives
        return iter([(name, found[name]) for name in ("clip", "latent", "prefix")])

    return work


def our_text(args: argparse.Namespace) -> Work:
    """A prefix to the text of a task."""
    from scanside.runtime.bundle import Bundle
    from scanside.runtime.language import LanguageModel

    bundle, given = Bundle.open(args.bundle), golden(args)
    spec = bundle.manifest.language
    assert spec is not None
    language = LanguageModel(bundle.path(spec.file), spec, threads=args.threads)

    def text(_: int) -> Iterator[tuple[str, Any]]:
        language.attend(given["prefix"][0])
        answer = language.answer(language.instruction(TASK), limit=args.tokens, task=TASK)
        for _piece in answer:
            yield "first_token", None
        yield "tokens", len(answer.tokens)
        yield "text", answer.text

    return text


def our_picture(args: argparse.Namespace) -> Work:
    """Prompt, CLIP vector and latent to a picture."""
    from scanside.runtime.bundle import Bundle
    from scanside.runtime.denoising import Condition
    from scanside.runtime.devices import stage_devices
    from scanside.runtime.opened_graphs import open_stage
    from scanside.runtime.pictures import open_pictures
    from scanside.runtime.reconstruction import to_pixels

    bundle, given = Bundle.open(args.bundle), golden(args)
    spec = bundle.manifest.diffusion
    assert spec is not None
    open_one = partial(open_stage, bundle, stage_devices("cpu"), args.threads)
    pictures = open_pictures(bundle, spec, open_one, {})
    made = pictures.reconstruction

    def picture(_: int) -> Iterator[tuple[str, Any]]:
        states, _cut = pictures.prompt.encode(PROMPT, remember=False)
        condition = Condition(clip=given["clip"], latent=given["latent"], states=states)
        clean = made.denoise(condition, steps=made.check_steps(args.steps), seed=0)
        yield "image", to_pixels(made.decode(clean))

    return picture


def our_chain(args: argparse.Namespace) -> Work:
    """A file to preview, caption and picture."""
    from scanside.runtime import Decoder, Done, Image, Preview, Token

    decoder = Decoder.open(args.bundle, threads=args.threads, warm=False)

    def chain(number: int) -> Iterator[tuple[str, Any]]:
        tasks = ("preview", "caption", "image")
        for event in decoder.stream(args.volumes[number], tasks, steps=args.steps):
            match event:
                case Preview():
                    yield "preview", event.image
                case Token():
                    yield "first_token", None
                case Image():
                    yield "image", event.image
                case Done():
                    yield "caption", event.result.caption
                    yield "prompt", event.result.image_prompt or ""
                case _:
                    pass

    return chain


def peer(args: argparse.Namespace) -> Work:
    """PyTorch, transformers, diffusers, or all of them."""
    import torch

    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if "bf16" in args.name else torch.float32
    compiled = "torch.compile" in args.name
    if args.piece == "chain":
        from peer_chain import Chain

        whole = Chain(args.checkpoint, dtype, steps=args.steps, compiled=compiled)
        return lambda number: whole(args.volumes[number])
    given = golden(args)
    if args.piece == "encoder":
        from peer_torch import TorchEncoder

        encode = TorchEncoder(args.checkpoint, dtype, compiled=compiled)
        return lambda _: iter(encode(given["tokens"]).items())
    if args.piece == "text":
        from peer_transformers import TransformersText

        language = TransformersText(args.checkpoint, dtype)

        def text(_: int) -> Iterator[tuple[str, Any]]:
            language.attend(given["prefix"][0])
            ids = language.answer(TASK, args.tokens)
            yield "tokens", len(ids)
            yield "text", language.text(ids)

        return text
    from peer_diffusers import DiffusersPicture

    paint = DiffusersPicture(args.checkpoint, dtype, steps=args.steps, compiled=compiled)
    return lambda _: iter([("image", paint(PROMPT, given["clip"], given["latent"]))])


def peak_mib() -> float:
    """Most memory that this process has held."""
    from scanside.runtime.bench.host_memory import host_memory

    return host_memory()["peak"] / 2**20


def run(work: Work, number: int, save: str = "") -> dict[str, Any]:
    """Do the work once; seconds, seconds to each answer, and memory."""
    answers: dict[str, float] = {}
    found: dict[str, Any] = {}
    began = time.perf_counter()
    for name, value in work(number):
        answers.setdefault(name, time.perf_counter() - began)
        found[name] = value
    seconds = time.perf_counter() - began
    if save:
        np.savez(save, **{name: value for name, value in found.items() if value is not None})
    return {"seconds": seconds, "answers": answers, "peak_mib": peak_mib()}


def arguments() -> argparse.ArgumentParser:
    """What a contender is told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("piece", choices=PIECES)
    parser.add_argument("name")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle")
    parser.add_argument("volumes", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tokens", type=int, help="most tokens of a text")
    return parser


def main() -> int:
    """Work once, then once for each order: run NUMBER, or save NUMBER FILE."""
    args = arguments().parse_args()
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    work = scanside(args) if args.name.startswith("scanside") else peer(args)
    print(json.dumps(run(work, 0)), file=out, flush=True)
    for line in sys.stdin:
        order, number, *file = line.rstrip("\n").split(" ", 2)
        done = run(work, int(number), *(file if order == "save" else []))
        print(json.dumps(done), file=out, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
