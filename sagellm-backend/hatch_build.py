"""Builds the native kernels into the wheel where a C++ compiler is there; without one the package is pure Python.

Run by hatchling for wheels and editable installs alike, or by hand: ``python hatch_build.py`` builds into ``src``.
``SAGELLM_NATIVE=off`` leaves the kernels out, ``SAGELLM_NATIVE=require`` fails where they cannot be built.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    BuildHookInterface = object

ROOT = Path(__file__).resolve().parent
LIBRARY = "src/sagellm_backend/cpu/native/_kernels.so"
COMMON = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-math-errno"]
COMMON += ["-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [f"-mavx512{name}" for name in ("f", "bw", "dq", "vl", "vnni", "bf16")]
# The headers of some compilers leave operands of masked intrinsics undefined on purpose, and then warn of it.
AVX512 += ["-mprefer-vector-width=512", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
FLAGS = {"kernels_avx2.cpp": AVX2, "kernels_avx512.cpp": AVX2 + AVX512}
"""Instruction sets of the files that may use them; all else runs on any processor of the architecture."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc,valid-type,unused-ignore]
    """Adds the library to a wheel, which then fits one platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build before hatchling collects files."""
        wish = os.environ.get("SAGELLM_NATIVE", "auto")
        if self.target_name != "wheel" or wish == "off":
            return
        problem = build(Path(self.root))
        if problem is None:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_of(Path(self.root) / LIBRARY)}"
            build_data["artifacts"].append(LIBRARY)
        elif wish == "require":
            raise RuntimeError(f"the native kernels could not be built: {problem}")
        else:
            self.app.display_warning(f"built without native kernels: {problem}")


def platform_of(library: Path) -> str:
    """The platforms that the library runs on, as a wheel's tag says it.

    It needs nothing but the C library (the compiler's own is linked in), so the newest version of that it asks for
    decides, as PEP 600 has it. Where the C library is another, only platforms like this one are promised.
    """
    versions = re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())
    machine = sysconfig.get_platform().removeprefix("linux-")
    if not versions:
        return f"linux_{machine}"
    return f"manylinux_2_{max(17, *map(int, versions))}_{machine}"


def build(root: Path) -> str | None:
    """Compile and link; the reason when it did not work."""
    if sys.platform != "linux":
        return f"they are built on Linux only, and this is {sys.platform}"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no C++ compiler was found (set CXX, or install g++)"
    x86 = platform.machine() in ("x86_64", "AMD64")
    sources = sorted(path for path in (root / "native").glob("*.cpp") if x86 or path.name not in FLAGS)
    target = root / LIBRARY
    # Built aside and moved into place whole: a build that is killed leaves what was there before.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:

        def run(*arguments: str) -> str | None:
            done = subprocess.run([*compiler.split(), *arguments], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                sys.stderr.write(done.stderr)  # warnings: there should be none
                return None
            return done.stderr.strip() or f"{compiler} failed"

        def compile_one(source: Path) -> str | None:
            flags = FLAGS.get(source.name, [])
            return run(*COMMON, *flags, "-c", str(source), "-o", f"{scratch}/{source.stem}.o")

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = [problem for problem in pool.map(compile_one, sources) if problem]
        if problems:
            return problems[0]
        built = f"{scratch}/kernels"
        objects = [f"{scratch}/{source.stem}.o" for source in sources]
        problem = run("-shared", "-o", built, *objects, "-static-libstdc++", "-static-libgcc", "-lm", "-Wl,-s")
        if problem is None:
            Path(built).replace(target)
        return problem


if __name__ == "__main__":
    failure = build(ROOT)
    sys.exit(failure)
