"""A decode in a new process, which tells each answer on stdout as soon as it is there.

    python -P -m scanside.runtime.bench.first_answers BUNDLE VOLUME --tasks preview,caption,image

One word a line: imported, opened, preview, first_token, image, total. The last line is the memory
that the process needed, as JSON, after two more decodes.
"""

from __future__ import annotations

import argparse
import json

from ..decoder import Decoder
from ..events import Image, Preview, Token
from .host_memory import host_memory

_MORE = 2
_NAMES: dict[type, str] = {Preview: "preview", Token: "first_token", Image: "image"}


def main() -> int:
    """Open, decode, tell."""
    print("imported", flush=True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("volume")
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--prompt", default="written")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    told: set[str] = set()
    # as the verb `decode` opens a bundle: one decode is no reason for a warm-up
    with Decoder.open(args.bundle, args.device, args.threads, warm=False) as decoder:
        print("opened", flush=True)
        for _ in range(1 + _MORE):
            events = decoder.stream(
                args.volume, args.tasks, steps=args.steps, prompt=args.prompt, seed=0
            )
            for event in events:
                name = _NAMES.get(type(event), "total")
                if name not in told:
                    told.add(name)
                    print(name, flush=True)
    print(json.dumps(host_memory()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
