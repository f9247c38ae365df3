"""Show decoded answers in PsychoPy, as soon as a run has them.

Start the run, then this:

    scanside watch BUNDLE --source ... --events ... --out RUN --sink files:TOLD
    python psychopy_feedback.py TOLD

The folder holds `latest.json`, which is replaced as a whole, every message as a numbered file, and
pictures that are there before the message that names them. So polling is safe: a file that is there
is complete. Reading takes less than a frame of the screen. Without PsychoPy, `--print` shows what
would be shown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

POLL_S = 0.05


class Told:
    """The messages of a run, in order, each once.

    Parameters
    ----------
    folder : Path
        What `--sink files:DIR` writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """What has come since the last call; returns at once."""
        latest = json.loads((self.folder / "latest.json").read_text("utf-8"))
        if latest["seq"] is None:
            return
        # a run that is resumed counts on from a higher number: begin with what is newest
        newest = int(latest["seq"])
        if newest - self._next > 1_000_000:
            self._next = newest // 10_000_000 * 10_000_000
        numbers = range(self._next, newest + 1)
        self._next = newest + 1
        for number in numbers:
            path = self.folder / f"{number:010d}.json"
            if path.exists():
                yield json.loads(path.read_text("utf-8"))


def shown(message: dict[str, Any]) -> str | None:
    """The words for an answer; None for a message that changes nothing on the screen."""
    if message["event"] != "answer" or message.get("withheld"):
        return None
    sure = message.get("confidence", {}).get("value")
    said = message.get("caption") or message["state"]
    return said if sure is None else f"{said}\n({sure:.0%} sure, {message['window']})"


def in_psychopy(told: Told) -> None:
    """A window with the newest words and picture, until the run is over or escape is pressed."""
    from psychopy import event, visual  # pyright: ignore

    window = visual.Window(color="black", units="height")
    words = visual.TextStim(window, text="waiting", height=0.05, pos=(0, -0.35), wrapWidth=1.2)
    picture: Any = None
    over = False
    while not over and "escape" not in event.getKeys():
        for message in told.new():
            over = over or message["event"] == "end"
            if (text := shown(message)) is not None:
                words.text = text
                if name := message.get("image") or message.get("preview"):
                    path = str(told.folder / name)
                    picture = visual.ImageStim(window, image=path, size=0.6, pos=(0, 0.1))
        if picture is not None:
            picture.draw()
        words.draw()
        window.flip()
    window.close()


def in_print(told: Told) -> None:
    """The same on the terminal."""
    over = False
    while not over:
        for message in told.new():
            over = over or message["event"] == "end"
            if (text := shown(message)) is not None:
                print(f"trial {message['trial']}: {text}", flush=True)
        time.sleep(POLL_S)


def main() -> None:
    """Show a run."""
    parser = argparse.ArgumentParser(description="Show decoded answers.")
    parser.add_argument("folder", type=Path, help="what --sink files:DIR writes")
    parser.add_argument("--print", action="store_true", help="on the terminal, without PsychoPy")
    args = parser.parse_args()
    (in_print if args.print else in_psychopy)(Told(args.folder))


if __name__ == "__main__":
    main()
