"""A core that says what a test wrote, in steps of any number of tokens, over a vocabulary of characters and marks.

Stands in for a model that writes calls and reasoning, which none as small as a test needs would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from sagellm_core.core.request import Beginning, CoreOutput, Ending
from sagellm_core.core.sequence import Finish
from sagellm_core.front.engine import FrontEngine
from sagellm_core.tokenizer import Tokenizer, load_tokenizer
from sagellm_core.transport.messages import Abort, Add, CoreMessage, FrontMessage, Outputs, Ready
from sagellm_protocol import DeviceInfo, EngineSpec

EOS = "<|eos|>"
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}\n{% endfor %}"
)


def write_model(folder: Path, *special: str) -> Path:
    """A tokenizer of one token a character, and some that are special."""
    from tokenizers import AddedToken, Regex, Tokenizer as Backend, decoders, models, pre_tokenizers

    letters = ["\n", *map(chr, range(32, 127)), "é", "｜", "▁"]
    backend = Backend(models.WordLevel({one: index for index, one in enumerate([EOS, *letters])}, unk_token=EOS))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (EOS, *special)])
    backend.save(str(folder / "tokenizer.json"))
    return folder


class ScriptedCore:
    """The front's end of such a core."""

    def __init__(self, tokenizer: Tokenizer, text: str, *, step: int = 1, finish: Finish = Finish.STOP) -> None:
        self._ids = tokenizer.encode(text, add_special_tokens=False)
        self._step = step
        self._finish = finish
        self._deliver: Callable[[CoreMessage], None] = lambda message: None
        self._tasks: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.said = 0

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Ready:
        self._deliver = deliver
        device = DeviceInfo(kind="cpu", name="scripted").to_wire()
        return Ready("Scripted", "scripted", 4096, [0], "float32", device, 4096, 8, 512, 16, 64)

    def send(self, message: FrontMessage) -> None:
        if isinstance(message, Add):
            for index in range(len(message.request.seeds)):
                place = message.request.ticket, index
                self._tasks[place] = asyncio.ensure_future(self._say(*place))
        elif isinstance(message, Abort):
            for place in list(self._tasks):
                if place[0] == message.ticket and message.index in {None, place[1]}:
                    self._tasks.pop(place).cancel()
                    self._deliver(Outputs([CoreOutput(*place, ending=_ending(Finish.CANCELLED))]))

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def logs(self, lines: int) -> Sequence[str]:
        return ()

    async def _say(self, ticket: int, index: int) -> None:
        beginning: Beginning | None = Beginning(0.0, 0)
        stops = self._finish is Finish.STOP
        ids = [*self._ids, 0] if stops else self._ids
        for at in range(0, len(ids), self._step):
            await asyncio.sleep(0)
            some = ids[at : at + self._step]
            last = at + self._step >= len(ids)
            self.said += len(some)
            ending = _ending(self._finish, 0 if stops else None) if last else None
            if last:
                self._tasks.pop((ticket, index))
            self._deliver(Outputs([CoreOutput(ticket, index, some, beginning=beginning, ending=ending)]))
            beginning = None


def _ending(finish: Finish, stop_token: int | None = None) -> Ending:
    return Ending(finish, stop_token, None, 0, 0.0, 0, 0, None)


def scripted_engine(
    folder: Path, text: str, *, step: int = 1, finish: Finish = Finish.STOP, **spec: object
) -> FrontEngine:
    """An engine of ours whose model says ``text``."""
    asked = EngineSpec.model_validate({"model": "scripted", "chat_template": TEMPLATE, **spec})
    core = ScriptedCore(load_tokenizer(folder), text, step=step, finish=finish)
    return FrontEngine(asked, lambda model, revision: folder, lambda spec, path: core)
