"""After loading, the pages of a checkpoint's file are not held; what is looked at again is read again."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from sagellm_core.loading.safetensors import SafetensorsFile

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="resident pages are read from /proc")

SIZE = 8 << 20


def held(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[-1] == str(path)
        elif inside and words[0] == "Rss:":
            total += int(words[1]) * 1024
    return total


def test_pages_are_let_go_of_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(256)) * (SIZE // 256))
    file = SafetensorsFile(path)
    data = file.data(file.tensors["w"])
    assert sum(data[::4096]) >= 0
    assert held(path) >= SIZE
    file.release()
    assert held(path) < SIZE // 16
    assert bytes(data[:256]) == bytes(range(256))
