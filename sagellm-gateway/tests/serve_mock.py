"""A program that serves a mock engine, as the ``sagellm`` command would; says where, and at its end what it imported.

Arguments: JSON of the mock's options, JSON of the gateway's settings.
"""

from __future__ import annotations

import asyncio
import json
import sys

from sagellm_gateway import load_settings, serve
from sagellm_protocol import EngineSpec
from sagellm_protocol.plugins import CONTROL_PLANES, load


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    options, settings = map(json.loads, sys.argv[1:])
    plane = load(CONTROL_PLANES, "default")()
    await plane.start()
    await plane.start_engine(EngineSpec(engine="mock", model="mock", options=options))
    await serve(plane, load_settings(**settings), say)
    await plane.stop(drain_s=0.0)
    say(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))


if __name__ == "__main__":
    asyncio.run(main())
