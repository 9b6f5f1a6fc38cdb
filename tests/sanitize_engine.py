"""The engine's tests under a sanitizer of GCC's: ``python -m tests.sanitize_engine address`` (memory and undefined
behaviour, some five minutes) or ``thread`` (data races of the engine's own code)."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ["tests/test_ops.py", "tests/test_ops_bfloat16.py"]
KINDS = {
    "address": ("-fsanitize=address,undefined -fno-sanitize-recover=undefined", ["libasan.so", "libubsan.so"]),
    "thread": ("-fsanitize=thread", ["libtsan.so"]),
}
# jaxlib is not built for a sanitizer: what it alone does is not looked at. Nor is how it hands over what one call
# leaves to the next, or to its threads, which in some runs is then reported as a race.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_container_overflow=0",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:report_signal_unsafe=0:exitcode=66",
}


def main() -> int:
    """Returns pytest's exit code, or the sanitizer's."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize_engine", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    flags, libraries = KINDS[parser.parse_args().kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("flax_shufflenet", "tests"):
            shutil.copytree(ROOT / each, folder / each, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for each in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / each, folder)
        build = os.environ | {"CXXFLAGS": f"{flags} -fno-omit-frame-pointer", "LDFLAGS": flags}
        subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=folder, env=build, check=True)
        found = (subprocess.check_output(["gcc", f"-print-file-name={each}"], text=True) for each in libraries)
        preloaded = ":".join(each.strip() for each in found)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, cwd=folder, env=os.environ | OPTIONS | {"LD_PRELOAD": preloaded}).returncode


if __name__ == "__main__":
    sys.exit(main())
