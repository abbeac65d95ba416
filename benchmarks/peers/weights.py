"""One model in every format the peers read, all made from the file the store ships, so that all hold one function.

The shipped file is Q4_1: made from it, Q8_0 and BF16 have the same values but for rounding, Q4_0 has coarser ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoints import bf16_folder

from sagellm_core.store import DEFAULT_MODEL, resolve

from .environment import run

CLASSES = ("4-bit", "8-bit", "bf16")
"""Weights within one are held against each other."""
SHIPPED = "Q4_1"


@dataclass(frozen=True)
class Weights:
    """Weights on the disk.

    Attributes:
        format: ``Q4_1``, ``BF16``, … of a GGUF file; ``checkpoint`` for a folder of BF16 safetensors.
        path: The file, or the folder.
    """

    format: str
    path: Path

    def read(self) -> None:
        """Have the system's page cache hold them."""
        for path in [self.path] if self.path.is_file() else sorted(self.path.iterdir()):
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


class Shelf:
    """Makes and keeps weights.

    Args:
        folder: Where they are kept.
        quantizer: Gives the path of llama.cpp's ``llama-quantize``; asked only when a file has to be made.
    """

    def __init__(self, folder: Path, quantizer: Callable[[], Path]) -> None:
        self._folder = folder
        self._quantizer = quantizer

    def get(self, form: str) -> Weights:
        """The default model in a format; made unless it is there.

        Raises:
            PeerError: There is no ``llama-quantize``, or it failed.
        """
        if form == "checkpoint":
            return Weights(form, bf16_folder(self._folder / "checkpoint"))
        shipped = resolve(DEFAULT_MODEL)
        if form == SHIPPED:
            return Weights(form, shipped)
        path = self._folder / f"{shipped.stem.removesuffix(f'.{SHIPPED}')}.{form}.gguf"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            run([self._quantizer(), "--allow-requantize", shipped, unfinished, form])
            unfinished.rename(path)
        return Weights(form, path)
