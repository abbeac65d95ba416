"""Trace files as requests: Azure's CSV and Mooncake's JSON lines, packed with gzip or not. Read as a stream."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from typing import TextIO

from sagellm_protocol import ErrorCode, SageLLMError

from .requests import SimRequest

MOONCAKE_BLOCK = 512
"""Tokens that one of a Mooncake trace's ``hash_ids`` stands for."""
COARSE_MS = 1000
"""Time stamps that are multiples of this or more are taken to have been rounded, and are spread."""


def read_trace(path: Path, *, seed: int = 0) -> Iterator[SimRequest]:
    """Requests of a trace file in order of arrival, the first at second 0.

    Args:
        path: ``.csv`` or ``.jsonl``, with ``.gz`` or without.
        seed: Of the spreading of time stamps that were rounded.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a file that is not there or of another form.
    """
    name = path.name.removesuffix(".gz")
    readers = {".csv": _azure, ".jsonl": _mooncake}
    reader = readers.get(Path(name).suffix)
    if reader is None:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{path} is neither a .csv nor a .jsonl trace", "trace")
    try:
        with path.open("rb") as packed:
            plain = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
            with io.TextIOWrapper(plain) as text:
                yield from reader(text, seed)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"the trace {path} cannot be read: {type(error).__name__}: {error}", "trace"
        ) from error


def scaled(trace: Iterable[SimRequest], speed: float) -> Iterator[SimRequest]:
    """The same requests, arriving ``speed`` times as fast; deadlines stay as far off as they were."""
    for request in trace:
        late = None if request.deadline is None else request.deadline - request.arrived
        request.arrived /= speed
        request.deadline = None if late is None else request.arrived + late
        yield request


def _azure(file: TextIO, seed: int) -> Iterator[SimRequest]:
    start: float | None = None
    for number, line in enumerate(csv.DictReader(file)):
        # Seven digits of a second; fromisoformat takes six.
        moment = datetime.fromisoformat(line["TIMESTAMP"][:26]).timestamp()
        start = moment if start is None else start
        yield SimRequest(number, moment - start, int(line["ContextTokens"]), int(line["GeneratedTokens"]))


def _mooncake(file: TextIO, seed: int) -> Iterator[SimRequest]:
    rng = random.Random(seed)
    lines = (json.loads(line) for line in file if line.strip())
    first = list(islice(lines, 256))
    quantum = math.gcd(*(int(line["timestamp"]) for line in first)) if first else 0
    number = 0
    start: float | None = None

    def chained() -> Iterator[dict[str, object]]:
        yield from first
        yield from lines

    for stamp, group in groupby(chained(), key=lambda line: int(str(line["timestamp"]))):
        members = list(group)
        offsets = [0.0] * len(members)
        if quantum >= COARSE_MS:
            offsets = sorted(rng.uniform(0, quantum) for _ in members)
        for line, offset in zip(members, offsets, strict=True):
            moment = (stamp + offset) / 1000
            start = moment if start is None else start
            yield _mooncake_request(number, moment - start, line)
            number += 1


def _mooncake_request(number: int, arrived: float, line: dict[str, object]) -> SimRequest:
    prompt, output, hashes = int(str(line["input_length"])), int(str(line["output_length"])), line["hash_ids"]
    if not isinstance(hashes, list):
        raise TypeError(f"hash_ids is a {type(hashes).__name__}")
    # The last of them may stand for a block that is not full, whose keys and values no other prompt can use.
    return SimRequest(number, arrived, prompt, output, tuple(hashes[: prompt // MOONCAKE_BLOCK]), MOONCAKE_BLOCK)
