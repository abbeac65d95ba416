"""The other end of a worker: reads one JSON object a line, answers one a line. Runs in any environment.

Whatever libraries print goes to standard error, so that nothing but answers is on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Generate = Callable[[list[list[int]], int], int]
"""Continues prompts of token ids by so many tokens each; returns how many it made in all."""


def serve(load: Callable[[dict[str, Any]], Generate]) -> None:
    """Load an engine, then answer until standard input ends.

    Args:
        load: Gets the options of the first command-line argument; returns what generates.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = load(json.loads(sys.argv[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        begun = time.perf_counter()
        try:
            made = generate(asked["prompts"], asked["tokens"])
            answer = {"seconds": time.perf_counter() - begun, "tokens": made}
        except Exception as error:  # noqa: BLE001 - told to who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
