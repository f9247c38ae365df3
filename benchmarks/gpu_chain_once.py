"""One picture through the whole chain of the reference bundle, for compute-sanitizer.

compute-sanitizer --tool memcheck --target-processes all python benchmarks/gpu_chain_once.py
"""

from __future__ import annotations

import sys

from gpu_smoke import DEVICE, trials

from scanside.runtime import Decoder
from scanside.runtime.device_chain import DeviceChain
from scanside.runtime.errors import ScansideError
from scanside.runtime.volume import load_volume


def main() -> int:
    """Volume in, picture out, one step: every kernel of the chain runs once or twice."""
    volume = load_volume(sorted(trials().glob("*.nii.gz"))[0])
    try:
        with Decoder.open("reference", device=DEVICE, warm=False) as decoder:
            chain = DeviceChain(decoder.stages)
            for _ in range(2):  # the second is launched as graphs
                made = chain.picture(volume, steps=1, seed=0)
                preview = chain.preview(volume)
    except ScansideError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"picture of {made.pixels.shape}, {made.pixels.mean():.1f} on average")
    print(f"preview of {preview.shape}, {preview.mean():.1f} on average")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
