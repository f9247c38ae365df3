"""The native code of `kernels/`; all else stands in pyproject.toml, where extensions only warn."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "scanside.kernels._native",
            sources=["kernels/resample.c"],
            depends=sorted(glob("kernels/*.h")),
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            extra_compile_args=["-O3", "-fopenmp", "-fno-math-errno", "-Wall", "-Wextra"],
            extra_link_args=["-fopenmp"],
        )
    ]
)
