"""`scanside chat BUNDLE VOLUME`: a dialogue about one beta volume, typed or piped in."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..chat import Chat
from ..cli import as_typed
from ..decoder import Decoder
from ..errors import InputError, ScansideError
from ..events import Token
from ..generation import Generation
from ..localization.files import NAMES, as_image, write_location
from ..reply import Reply
from ..sampling import Sampling
from .decode import DEVICE_HELP, VRAM_HELP, folder_for, write_result

_HELP = """\
/caption         a caption of the volume
/describe        a detailed description
/locate CONCEPT  names the concept, and writes where in the brain it is
/new             a new conversation about the same volume
/quit            the end"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder, or 'reference'")
    parser.add_argument("volume", metavar="VOLUME", type=Path, help="a NIfTI file, .nii or .nii.gz")
    parser.add_argument("--index", type=int, metavar="I", help="which volume of a 4-D file, from 0")
    parser.add_argument("--device", default="cpu", metavar="D", help=DEVICE_HELP)
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="CPU threads (default: 2)"
    )
    parser.add_argument("--vram", metavar="SIZE", help=VRAM_HELP)
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="of an answer (default: the bundle's)"
    )
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="end each answer after this time"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="draw tokens instead of taking the likeliest (default: 0, the likeliest)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="draw from the N likeliest (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest that have P together (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="show the mean log-probability of each answer's tokens",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the picture and result.json (default: here, NAME[-INDEX]-decoded)",
    )


def run(args: argparse.Namespace) -> int:
    """Decode the picture, then answer until the input ends."""
    generation = Generation(
        max_tokens=args.max_tokens,
        deadline_s=args.deadline,
        sampling=Sampling(
            temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
        ),
    )
    _progress("opening the bundle")
    with (
        Decoder.open(args.bundle, args.device, args.threads, warm=False, vram=args.vram) as decoder,
        decoder.chat(args.volume, index=args.index) as chat,
    ):
        _show_picture(decoder, chat, args)
        place = partial(_show_place, decoder, args)
        return Dialogue(chat, generation, place, confidence=args.confidence).run()


def _show_picture(decoder: Decoder, chat: Chat, args: argparse.Namespace) -> None:
    """Make the picture that the volume's own text conditions, and say where it is."""
    if not decoder.stages.pictures:
        _progress("")
        print("picture: none, for this bundle has no diffusion model", flush=True)
        return
    _progress("decoding the picture")
    text = chat.write("prompt").text or "none"
    result = decoder.decode(args.volume, "image", prompt=text, index=args.index)
    out = args.out or folder_for(args.volume, args.index)
    document = write_result(result, out)
    _progress("")
    print(f"picture: {document['image']}", flush=True)


def _show_place(decoder: Decoder, args: argparse.Namespace, concept: str) -> None:
    """Write a concept's heat map and its pictures, and say where they are."""
    (location,) = decoder.locations(args.volume, concept, index=args.index)
    out = args.out or folder_for(args.volume, args.index)
    out.mkdir(parents=True, exist_ok=True)
    background = as_image(args.volume, args.index)
    written = write_location(location, out, background, {"bundle": decoder.bundle.sha256})
    for kind in written.kinds:
        print(f"{kind}: {out / NAMES[kind]}", flush=True)
    for sentence in written.degraded:
        print(f"({sentence})", flush=True)


def _progress(doing: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{doing}", end="", file=sys.stderr, flush=True)


class Dialogue:
    """The prompt: reads questions and commands, streams answers.

    Parameters
    ----------
    chat : Chat
    generation : Generation
        How answers are written.
    place : callable
        Shows where in the brain a concept is.
    confidence : bool
        Show each answer's mean log-probability.
    """

    def __init__(
        self,
        chat: Chat,
        generation: Generation,
        place: Callable[[str], None],
        *,
        confidence: bool,
    ) -> None:
        self._chat = chat
        self._generation = generation
        self._place = place
        self._confidence = confidence
        self._typed = sys.stdin.isatty()
        self._failed = False

    def run(self) -> int:
        """Answer until the end; exit code 1 when a piped question could not be answered."""
        if self._typed:
            print("Ask about the picture; /help lists the commands.")
        for line in _lines(typed=self._typed):
            if line == "/quit":
                break
            if line:
                self._answer(line)
        return 1 if self._failed and not self._typed else 0

    def _answer(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._show(self._chat.stream(line, self._generation))
        except ScansideError as exc:
            self._failed = True
            print(f"scanside chat: {as_typed(str(exc))}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            if not self._typed:
                raise
            print(" (stopped)")

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/caption": lambda _: self._show(self._chat.stream_task("caption", self._generation)),
            "/describe": lambda _: self._show(self._chat.stream_task("describe", self._generation)),
            "/locate": self._locate,
            "/new": lambda _: self._chat.forget(),
            "/help": lambda _: print(_HELP, flush=True),
        }
        if name not in commands:
            raise InputError(f"there is no command {name}; /help lists them")
        commands[name](rest.strip())

    def _locate(self, concept: str) -> None:
        """The language model names the concept, the localizer places it."""
        if not concept:
            raise InputError("/locate needs a concept, for example /locate red circle")
        self._show(self._chat.stream_task("locate", self._generation, concept=concept))
        self._place(concept)

    def _show(self, events: Iterator[Token | Reply]) -> None:
        for event in events:
            if isinstance(event, Token):
                print(event.text, end="", flush=True)
            else:
                self._end(event)

    def _end(self, reply: Reply) -> None:
        print(flush=True)
        if self._confidence and reply.log_prob is not None:
            print(f"(mean log-probability {reply.log_prob:.2f})", flush=True)
        for sentence in reply.degraded:
            print(f"({sentence})", flush=True)


def _lines(*, typed: bool) -> Iterator[str]:
    """Lines of stdin without outer space, after a prompt if a person types them."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # a question that is not valid text is refused with a sentence, and ends nothing
        sys.stdin.reconfigure(errors="surrogateescape")
    if not typed:
        for line in sys.stdin:
            yield line.strip()
        return
    importlib.import_module("readline")  # gives `input` line editing and a history
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return
