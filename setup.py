"""Builds the kernels where there is a C++ compiler; without one, everything installs and runs in torch."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "headwater.native._kernels",
            ["src/headwater/native/kernels.cpp"],
            depends=[
                f"src/headwater/native/{part}.inc"
                for part in ("vectors", "products", "cells", "softmax", "pooling", "step")
            ],
            # Loaded by ctypes: one file for all versions of Python and torch.
            py_limited_api=True,
            optional=True,
            # The vectors never cross the library's border, so their calling convention doesn't matter.
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"],
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
