"""How long a start takes, from the process to its first token, and what memory it holds afterwards.

    python benchmarks/start.py [--model smollm2-135m] [--runs 5] [--json FILE]

Weights are in the page cache from the second run on; the first is not counted. Memory is what ``smaps_rollup`` says
(Linux), beside that of a process that has imported torch and done nothing with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TORCH = "import torch; print(flush=True); input()"
OFFLINE = """
import sys
from sagellm import LLM, SamplingParams
llm = LLM(sys.argv[1], core=sys.argv[2])
llm.generate("Hello, my name is", SamplingParams(max_tokens=1), progress=False)
print(flush=True)
number, length = int(sys.argv[3]), int(sys.argv[4])
prompts = [[100 + (7 * row + column) % 5000 for column in range(length)] for row in range(number)]
llm.generate(prompts, SamplingParams(max_tokens=128, ignore_eos=True), progress=False)
print(flush=True)
input()
"""
WORK = {"a: one stream, prompt 32, output 128": (1, 32), "c: 16 requests, prompt 128, output 128": (16, 128)}
SAGELLM = (sys.executable, "-m", "sagellm")
PATIENCE_S = 300.0
POLL_S = 0.002


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its ends open, gone afterwards."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.terminate()
        child.communicate()


def heard(child: subprocess.Popen[bytes]) -> bytes:
    """The next line that a process writes."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{child.args} ended without a word")
    return line


def time_line(*command: str) -> float:
    """Seconds from starting a process to the first thing it writes."""
    begin = time.perf_counter()
    with process(*command) as child:
        assert child.stdout is not None
        if not child.stdout.read(1):
            raise SystemExit(f"{command} ended without a word")
        return time.perf_counter() - begin


def time_served(model: str) -> float:
    """Seconds from starting a server to the first piece of a streamed answer, asked for as soon as it is ready."""
    begin = time.perf_counter()
    with process(*SAGELLM, "serve", model, "--port", "0", "--json") as server:
        said = json.loads(heard(server))
        base = said["url"].removesuffix("/v1")
        while not ready(base):
            if time.perf_counter() - begin > PATIENCE_S:
                raise SystemExit("the server did not become ready")
            time.sleep(POLL_S)
        body = {
            "model": said["model"],
            "stream": True,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
        }
        request = urllib.request.Request(
            base + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if b'"content":"' in line.replace(b" ", b"") and b'"content":""' not in line.replace(b" ", b""):
                    return time.perf_counter() - begin
    raise SystemExit("the server answered without a token")


def ready(base: str) -> bool:
    """Whether a server says so."""
    try:
        with urllib.request.urlopen(base + "/ready", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def memory_mb(pid: int) -> dict[str, float]:
    """Resident and proportional megabytes (10^6) of a process."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, value = line.partition(":")
        values[key] = int(value.split()[0]) * 1024 / 1e6
    return {"rss": values["Rss"], "pss": values["Pss"], "anonymous": values["Anonymous"]}


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def measure_memory(model: str) -> dict[str, dict[str, float]]:
    """Memory of each process after each kind of work."""
    table: dict[str, dict[str, float]] = {}
    with process(sys.executable, "-c", TORCH) as child:
        heard(child)
        table["import torch, alone"] = memory_mb(child.pid)
    for work, (number, length) in WORK.items():
        for core in ("inline", "process"):
            with process(sys.executable, "-c", OFFLINE, model, core, str(number), str(length)) as child:
                heard(child)
                heard(child)
                if core == "inline":
                    table[f"{work}; in one process"] = memory_mb(child.pid)
                    continue
                table[f"{work}; front"] = memory_mb(child.pid)
                for pid in children(child.pid):
                    table[f"{work}; core"] = memory_mb(pid)
    return table


def measure_starts(model: str, runs: int) -> dict[str, list[float]]:
    """Seconds of each way to start, ``runs`` times after one that is not counted, in turns."""
    ways = {
        "import torch, alone": lambda: time_line(sys.executable, "-c", TORCH),
        "LLM(…).generate(…)": lambda: time_line(sys.executable, "-c", OFFLINE, model, "inline", "1", "1"),
        "sagellm run": lambda: time_line(*SAGELLM, "run", "-m", model, "hi", "--max-tokens", "4"),
        "sagellm serve, chat": lambda: time_served(model),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, measure in ways.items():
            value = measure()
            if turn:
                seconds[name].append(value)
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--skip-memory", action="store_true", help="measure starts alone")
    options = parser.parse_args(argv)
    starts = measure_starts(options.model, options.runs)
    print("| process start to first token | median s | least s |\n|---|---|---|")
    for name, seconds in starts.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} |")
    memory = {} if options.skip_memory else measure_memory(options.model)
    if memory:
        print("\n| memory, MB | resident | proportional | anonymous |\n|---|---|---|---|")
    for name, values in memory.items():
        print(f"| {name} | {values['rss']:.0f} | {values['pss']:.0f} | {values['anonymous']:.0f} |")
    if options.json is not None:
        options.json.write_text(json.dumps({"start_s": starts, "memory_mb": memory}, indent=1))


if __name__ == "__main__":
    main()
