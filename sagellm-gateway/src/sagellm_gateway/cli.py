"""The command line of ``python -m sagellm_gateway``: settings as options, errors in one line.

Knows nothing of serving.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from sagellm_protocol import SageLLMError
from sagellm_protocol.logs import configure

from .loop import run
from .server import serve
from .settings import PREFIX, load_settings

_EPILOG = f"""\
Every other setting is an environment variable {PREFIX}NAME; the README lists them.

example:
  python -m sagellm_gateway --port 8889 --engine http://127.0.0.1:9000
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a gateway until a signal; returns the exit status.

    Args:
        arguments: In place of the program's own.
    """
    given = vars(_parser().parse_args(arguments))
    try:
        settings = load_settings(**{name: value for name, value in given.items() if value is not None})
        configure(logging.DEBUG if settings.log_level == "trace" else settings.log_level.upper())
        run(serve(None, settings, lambda url: print(f"serving on {url}", file=sys.stderr, flush=True)))  # noqa: T201
    except SageLLMError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sagellm_gateway",
        description="An OpenAI-compatible gateway over engine servers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (8889); 0 takes any that is free")
    parser.add_argument("--log-level", help="critical, error, warning, info, debug or trace (info)")
    parser.add_argument("--api-key", dest="api_keys", action="append", help="a key callers may present; repeatable")
    parser.add_argument("--engine", dest="engines", action="append", metavar="URL", help="an engine server; repeatable")
    parser.add_argument("--drain", dest="drain_s", type=float, metavar="SECONDS", help="time after SIGTERM (30)")
    parser.add_argument(
        "--allow-unauthenticated",
        action="store_true",
        default=None,
        help="serve beyond this machine without a key",
    )
    return parser
