"""Builds what is not Python; without a compiler the package is installed without it.

That is the CPU engine, once for each instruction set, and the allocator of large blocks.
Neither uses Python's interface: one wheel is for every Python.
"""

import hashlib
import platform
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("flax_shufflenet/ops/engine")
FLAGS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS["avx2"] = ["-mavx2", "-mfma"]
    FLAGS["avx512"] = ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
    FLAGS["avx512"] += ["-mprefer-vector-width=512"]


def sources_hash() -> str:
    """What ``flax_shufflenet.ops`` compares with the sources it finds, so that no build is used that is out of date."""
    files = sorted(path for path in (Path(__file__).parent / FOLDER).iterdir() if path.suffix in (".h", ".cc"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def extension(name: str) -> Extension:
    jaxlib = find_spec("jaxlib")  # a build requirement, for its headers
    headers = [f"-isystem{Path(jaxlib.origin).parent / 'include'}"] if jaxlib and jaxlib.origin else []
    options = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-g0"]
    return Extension(
        f"flax_shufflenet.ops._engine_{name}",
        [str(FOLDER / f"{name}.cc")],
        depends=[str(path) for path in sorted(FOLDER.glob("*.h"))],
        define_macros=[("ENGINE_SOURCES", f'"{sources_hash()}"')],
        extra_compile_args=[*headers, *options, *FLAGS[name], "-fvisibility=hidden", "-Wno-psabi"],
        language="c++",
        optional=True,
    )


LARGE_BLOCKS = Extension(
    "flax_shufflenet.system._large_blocks",
    ["flax_shufflenet/system/large_blocks.c"],
    extra_compile_args=["-O2", "-fno-builtin", "-g0"],
    optional=True,
)


class BuildAnew(build_ext):
    """All at once, whatever the number of processors, and never from an object that is left of other sources."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True
        self.parallel = len(self.extensions)

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"


class AnyPython(bdist_wheel):
    """The wheel is for a platform, and for no Python in particular."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[-1]


setup(ext_modules=[*map(extension, FLAGS), LARGE_BLOCKS], cmdclass={"build_ext": BuildAnew, "bdist_wheel": AnyPython})
