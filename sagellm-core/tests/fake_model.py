"""A model folder for the fake executor's 97 tokens, and cores made of it, in this process or in a child."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fake_executor import EOS, VOCAB, FakeExecutor
from sagellm_core.core.loop import EngineCore
from sagellm_core.core.sizing import decide_limits
from sagellm_core.front.engine import FrontEngine
from sagellm_core.transport.base import CoreClient
from sagellm_core.transport.inline import InlineClient
from sagellm_core.transport.process import ProcessClient
from sagellm_protocol import EngineSpec, ErrorCode, SageLLMError

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
STEP_S = 0.001
CHARACTERS = ["\n", *map(chr, range(32, 127))]
POISON = CHARACTERS.index("~") + 1
"""The token that the fake cannot compute."""


def write_tokenizer(folder: Path, *special: str) -> Path:
    """One token a character, and some that are special."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"</s>": EOS, **{character: index for index, character in enumerate(CHARACTERS, start=1)}}
    assert len(vocabulary) == VOCAB
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("</s>", *special)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def fake_spec(core: str, **fields: object) -> EngineSpec:
    return EngineSpec.model_validate(
        {"model": "fake", "core": core, "max_model_len": 1024, "chat_template": TEMPLATE, **fields}
    )


def fake_engine(folder: Path, spec: EngineSpec, factory: str = "fake_model:build_fake") -> FrontEngine:
    """An engine of ours over the fake executor."""

    def connect(spec: EngineSpec, path: Path) -> CoreClient:
        if spec.core == "inline":
            return InlineClient(spec, path, globals()[factory.partition(":")[2]])
        return ProcessClient(spec, path, factory)

    return FrontEngine(spec, lambda model, revision: folder, connect)


def build_fake(spec: EngineSpec, path: Path) -> EngineCore:
    executor = FakeExecutor(step_s=STEP_S, fail_on=POISON)
    info = executor.info
    limits = decide_limits(
        spec,
        kv_specs=info.kv_specs,
        kv_dtype=info.kv_dtype,
        max_position_embeddings=info.max_position_embeddings,
        device_kind="cpu",
        free_bytes=1 << 20,
    )
    return EngineCore(executor, limits, prefix_caching=spec.prefix_caching)


def refuse_to_build(spec: EngineSpec, path: Path) -> EngineCore:
    raise SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"{path} has no config.json; name a folder that has", "model")


def break_while_building(spec: EngineSpec, path: Path) -> EngineCore:
    raise ZeroDivisionError("one too many")


def die_while_building(spec: EngineSpec, path: Path) -> EngineCore:
    print("last words", file=sys.stderr, flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")
