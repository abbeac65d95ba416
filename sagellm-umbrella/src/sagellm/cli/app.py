"""The command's table, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence

import typer
from rich.markup import escape

from sagellm_protocol import SageLLMError
from sagellm_protocol.logs import configure

from . import chat, doctor, engine, models, plan, run, serve, simulate, version
from .console import error_console

EXIT_ERROR = 1
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

LOGGERS = ("sagellm", "sagellm_backend", "sagellm_control_plane", "sagellm_core", "sagellm_gateway", "sagellm_protocol")
"""Of the components: what ``--debug`` shows all of."""

app = typer.Typer(
    name="sagellm",
    help="Run and serve language models, from a laptop's CPU upwards.",
    epilog='Start with: sagellm run "Why is the sky blue?"',
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("engine")(engine.engine)
app.command("pull")(models.pull)
app.command("models")(models.models)
app.command("simulate")(simulate.simulate)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.command("version")(version.version)


@app.callback()
def _common(
    debug: bool = typer.Option(
        False, "--debug", envvar="SAGELLM_DEBUG", help="Show tracebacks and log everything the components say."
    ),
) -> None:
    if debug:
        os.environ["SAGELLM_DEBUG"] = "1"
        configure()
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.DEBUG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: Arguments after the program's name; those of the process when absent.
    """
    try:
        app(args=argv, prog_name="sagellm")
    except SystemExit as leaving:  # how typer ends: it has said whatever was to be said
        return leaving.code if isinstance(leaving.code, int) else 0
    except SageLLMError as error:
        return _fail(error, error.message, EXIT_ERROR)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`sagellm models | head`): not worth a message, and Python must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001  the last resort of a program: no traceback unless asked for
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report what it prints"
        return _fail(error, text, EXIT_INTERNAL)
    return 0


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("SAGELLM_DEBUG") == "1":
        traceback.print_exception(error)
        return code
    error_console().print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    return code
