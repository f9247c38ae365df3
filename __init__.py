"""scanside compiles trained brain decoders and runs them beside the scanner.

Import what you need from the folders: ``scanside.runtime`` decodes, ``scanside.kernels`` resamples,
``scanside.export`` (extra ``export``) turns PyTorch checkpoints into bundles.
"""

__version__ = "0.1.0"
