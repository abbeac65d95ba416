"""Measure our engine beside its peers: set each up in an environment of its own, ask all the same, print one table.

    python -m benchmarks.peers
    python -m benchmarks.peers --only ours,llama.cpp --weights 4-bit --work a,c --rounds 3

The first run installs and builds, which takes many minutes; later ones find what it left under --home. What cannot be
installed or fails is in the table, with its reason. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine

from . import PEERS
from .base import Peer, Setting
from .errors import PeerError
from .llama_cpp import LlamaCpp
from .measure import Entrant, memory, rates, starts
from .ours import torch_import_mb
from .report import tables
from .results import MEMORY_MANY, MEMORY_ONE, START, Results, Row
from .weights import CLASSES, Shelf
from .workloads import WORKLOADS

VOCAB_SIZE = 49_152
"""Of the default model."""
WORK = (*WORKLOADS, "start", "memory")
DEFAULT_HOME = Path("~/.cache/sagellm-peers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that engines are ended on the way out
    setting = Setting(given.home.expanduser(), given.threads, VOCAB_SIZE)
    peers = {name: PEERS[name](setting) for name in given.only}
    versions, broken = _set_up(peers)
    if given.setup_only:
        for name in peers:
            print(f"{peers[name].name} {versions[name]}" if name in versions else f"{peers[name].name}: {broken[name]}")
        return 1 if broken else 0
    results = Results(
        describe_machine(), dt.datetime.now().astimezone().date().isoformat(), given.threads, given.rounds
    )
    shelf = Shelf(setting.home / "weights", lambda: _quantizer(setting))
    for kind in given.weights:
        entrants = _enter(kind, peers, versions, broken, shelf, results)
        workloads = [WORKLOADS[key] for key in given.work if key in WORKLOADS]
        if workloads:
            rates(entrants, workloads, given.rounds)
        if "start" in given.work:
            starts(entrants, given.starts)
        if "memory" in given.work:
            memory(entrants)
    if "ours" in peers and "memory" in given.work:
        results.torch_import_mb = torch_import_mb()
    if given.add and given.json and given.json.exists():
        results.take_in(Results.from_json(json.loads(given.json.read_text())))
    print(tables(results))
    if given.json:
        given.json.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, names, help in (
        ("--only", PEERS, "engines"),
        ("--weights", CLASSES, "classes of weights"),
        ("--work", WORK, "what to measure: " + "; ".join(f"{one.key}, {one.title}" for one in WORKLOADS.values())),
    ):
        listed = ",".join(names)
        parser.add_argument(option, type=_some_of(names), default=tuple(names), metavar=listed, help=help)
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one to warm up (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=3, help="of each engine (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(default: %(default)s)")
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="what is set up (default: %(default)s)")
    parser.add_argument("--setup-only", action="store_true", help="install and build, then stop")
    parser.add_argument("--json", type=Path, help="also write every round's figures here")
    parser.add_argument(
        "--add", action="store_true", help="keep what that file has of classes and work not measured now"
    )
    return parser


def _some_of(names: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    known = tuple(names)

    def parse(text: str) -> tuple[str, ...]:
        chosen = text.split(",")
        for one in chosen:
            if one not in known:
                raise argparse.ArgumentTypeError(f"{one!r} is none of {', '.join(known)}")
        return tuple(name for name in known if name in chosen)

    return parse


def _set_up(peers: dict[str, Peer]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the peers that are there now, and reasons of those that are not."""
    versions, broken = {}, {}
    for name, peer in peers.items():
        try:
            versions[name] = peer.setup()
        except PeerError as error:
            broken[name] = f"cannot be set up: {error}"
            print(f"{peer.name} {broken[name]}", file=sys.stderr, flush=True)
    return versions, broken


def _enter(
    kind: str, peers: dict[str, Peer], versions: dict[str, str], broken: dict[str, str], shelf: Shelf, results: Results
) -> list[Entrant]:
    """Who takes part with weights of one class; each gets a row of the results, and so does who cannot."""
    entrants = []
    for name, peer in peers.items():
        for form in peer.formats.get(kind, ()):
            row = Row(peer.name, form, kind, versions.get(name, ""))
            results.rows.append(row)
            try:
                if name in broken:
                    raise PeerError(broken[name])
                entrants.append(Entrant(peer, shelf.get(form), row))
            except PeerError as error:
                row.failures.update(dict.fromkeys((*WORKLOADS, START, MEMORY_ONE, MEMORY_MANY), str(error)))
    return entrants


def _quantizer(setting: Setting) -> Path:
    llama = LlamaCpp(setting)
    llama.setup()
    return llama.tool("llama-quantize")


if __name__ == "__main__":
    sys.exit(main())
