"""``sagellm chat``: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from anyio.from_thread import BlockingPortal
from pydantic import ValidationError
from rich.markup import escape

from sagellm_protocol import FinishReason, SageLLMError, SamplingParams

from .console import error_console
from .options import ENGINE_OPTIONS, SAMPLING_OPTIONS, sampling_params, takes
from .run import KeyOption, ModelOption, UrlOption, open_source, summary
from .talk import Ending, Source, stream

HELP = """\
/help              this list
/clear             forget the conversation
/system TEXT       set the system prompt, and forget the conversation
/set NAME VALUE    change a sampling parameter (temperature, top_p, max_tokens, seed, …)
/show              system prompt, sampling parameters and length of the conversation
/undo              take back your last turn and its answer
/retry             answer your last turn again
/save FILE         write the conversation as JSON
/stats             cost of the last answer
/exit              leave (also Ctrl-D); Ctrl-C stops an answer"""


@dataclass
class Conversation:
    """What has been said, and how the next answer is sampled."""

    sampling: SamplingParams
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    last: Ending = field(default_factory=Ending)

    def messages(self) -> list[dict[str, str]]:
        """The turns with the system prompt before them."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return opening + self.turns

    def command(self, line: str) -> str | None:
        """Carry out a slash command; returns what to print, or ``None`` where the last turn is to be answered again.

        Raises:
            EOFError: The conversation is over.
        """
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        if name in {"exit", "quit", "bye"}:
            raise EOFError
        if name == "clear":
            self.turns.clear()
            return "forgotten"
        if name == "system":
            self.system, self.turns = argument or None, []
            return "system prompt set" if argument else "system prompt removed"
        if name == "set":
            return self._set(argument)
        if name == "show":
            changed = self.sampling.model_dump(exclude_defaults=True)
            return (
                f"system prompt: {self.system or 'none'}\nsampling: {changed or 'defaults'}\nturns: {len(self.turns)}"
            )
        if name == "undo":
            self._drop_last_turn()
            return f"{len(self.turns)} turns left"
        if name == "retry":
            if not self.turns:
                return "nothing to answer again"
            if self.turns[-1]["role"] == "assistant":
                self.turns.pop()
            return None
        if name == "save":
            return self._save(argument)
        if name == "stats":
            return summary(self.last)
        return HELP if name == "help" else f"no command /{name}\n{HELP}"

    def _drop_last_turn(self) -> None:
        while self.turns and self.turns.pop()["role"] != "user":
            pass

    def _set(self, argument: str) -> str:
        name, _, text = argument.partition(" ")
        if name not in SamplingParams.model_fields or not text:
            return f"write /set NAME VALUE; names are {', '.join(SamplingParams.model_fields)}"
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        try:
            self.sampling = SamplingParams(**{**self.sampling.model_dump(exclude_defaults=True), name: value})
        except ValidationError as error:
            return SageLLMError.from_validation(error).message
        return f"{name} = {getattr(self.sampling, name)}"

    def _save(self, argument: str) -> str:
        if not argument:
            return "write /save FILE"
        try:
            Path(argument).write_text(
                json.dumps(self.messages(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
            )
        except OSError as error:
            return f"cannot write {argument}: {error.strerror}"
        return f"written to {argument}"


@takes(ENGINE_OPTIONS, into="engine_options")
@takes(SAMPLING_OPTIONS, into="sampling_options")
def chat(
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="System prompt.", show_default=False)] = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    *,
    engine_options: dict[str, Any],
    sampling_options: dict[str, Any],
) -> None:
    """Talk with a model; /help lists commands.

    Examples:

      sagellm chat

      sagellm chat --system "Answer in one sentence." --temperature 0.2

      sagellm chat --url http://127.0.0.1:8889/v1
    """
    talk = Conversation(sampling_params(sampling_options), system)
    with open_source(model, url, api_key, engine_options) as (portal, source):
        if sys.stdin.isatty():
            _enable_line_editing()
            error_console().print(f"[dim]{escape(source.model)} · /help for commands, Ctrl-D to leave[/]")
        while (line := _ask()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                try:
                    said = talk.command(line.strip())
                except EOFError:
                    return
                if said is not None:
                    error_console().print(escape(said), style="dim")
                    continue
            else:
                talk.turns.append({"role": "user", "content": line})
            _answer(portal, source, talk)


def _answer(portal: BlockingPortal, source: Source, talk: Conversation) -> None:
    """Stream the next answer; Ctrl-C leaves what was said until then, and takes back a turn that got no answer."""
    pieces: list[str] = []
    talk.last = Ending()
    try:
        for piece in stream(portal, source, talk.messages(), talk.sampling):
            if isinstance(piece, Ending):
                talk.last = piece
            else:
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not pieces:
            talk.turns.pop()
            error_console().print("[dim]stopped before an answer; your turn is taken back[/]")
            return
        error_console().print(" [dim]stopped[/]", end="")
    except SageLLMError as error:
        talk.turns.pop()
        error_console().print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True)
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    talk.turns.append({"role": "assistant", "content": "".join(pieces)})
    if talk.last.finish_reason == FinishReason.LENGTH.value and sys.stdin.isatty():
        error_console().print("[dim]cut off by max_tokens or by the end of the context; /set max_tokens, or /clear[/]")


def _ask() -> str | None:
    """The next line, or ``None`` when there is none. Ctrl-C at the prompt clears the line, as shells do."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                sys.stdout.write("\n")
            return None
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            if not sys.stdin.isatty():
                raise


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  importing it is what gives input() editing and history
    except ImportError:
        error_console().print("[dim]this Python has no readline: line editing is off[/]")
