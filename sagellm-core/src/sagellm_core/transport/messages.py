"""The messages between fronts and a core, as MessagePack where they leave the process.

Both ends are of one version and one host: a front starts its core. Knows nothing of sockets.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sagellm_core.adapters.base import AdapterRef
from sagellm_core.core.kv_log import KVChange
from sagellm_core.core.request import CoreOutput, CoreRequest, CoreStats, PoolRequest


class Hello(msgspec.Struct, frozen=True, tag=True):
    """A front is there; answered by :class:`Ready` once the core is, or :class:`Failed`."""


class Add(msgspec.Struct, frozen=True, tag=True):
    """Work on a request."""

    request: CoreRequest


class Pool(msgspec.Struct, frozen=True, tag=True):
    """Make vectors of inputs."""

    request: PoolRequest


class Teach(msgspec.Struct, frozen=True, tag=True):
    """How tokens are spelt; sent before the first request with a grammar.

    Attributes:
        vocabulary: The model's ``tokenizer.json``.
    """

    vocabulary: str


class CheckAdapter(msgspec.Struct, frozen=True, tag=True):
    """See whether the adapter in a folder fits the model; answered by :class:`AdapterChecked`.

    Attributes:
        number: Of the question.
        path: The folder.
    """

    number: int
    path: str


class WelcomeAdapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter that was checked is served from now on."""

    adapter: AdapterRef


class ForgetAdapter(msgspec.Struct, frozen=True, tag=True):
    """An adapter is served no more, under any name; those who use it end as they would."""

    key: str


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End a request, or one continuation of it; answered by the ending of each that was still going on."""

    ticket: int
    index: int | None = None


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Ask for statistics; everything sent before has been acted on when the answer is made."""

    number: int


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Tell what changes in the prefix cache from now on, by :class:`KVChanges`."""


class Control(msgspec.Struct, frozen=True, tag=True):
    """Change what the core holds in memory; answered by :class:`Controlled`.

    Attributes:
        number: The asker's, for the answer.
        action: What to do.
        level: For ``sleep``: whether weights go, too (2), or the cache alone (1).
        path: For ``reload``: where the other model is.
    """

    number: int
    action: Literal["sleep", "wake", "reload"]
    level: int = 1
    path: str = ""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Leave everything and end."""


FrontMessage = (
    Hello | Add | Pool | Teach | CheckAdapter | WelcomeAdapter | ForgetAdapter | Abort | Ping | Watch | Control | Stop
)


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The core has loaded its model.

    Attributes:
        architecture: Class name of the model's reference implementation.
        model_key: Identity of the weights.
        vocab_size: Token ids are below this.
        eos_token_ids: Tokens that end an answer.
        dtype: Type that is computed in.
        device: The protocol's ``DeviceInfo``, as JSON.
        max_model_len, max_num_seqs, max_num_batched_tokens, block_size: As settled.
        total_blocks: Blocks of all groups.
        generates: It continues prompts.
        embedding_size: Dimensions of the vectors it makes of inputs, if it makes any.
        scores: It makes one number of a pair of texts, by a head of its own.
        adapters: It takes adapters.
    """

    architecture: str
    model_key: str
    vocab_size: int
    eos_token_ids: list[int]
    dtype: str
    device: bytes
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    total_blocks: int
    generates: bool = True
    embedding_size: int | None = None
    scores: bool = False
    adapters: bool = False


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The core ends: it could not start, or cannot go on. Fields as in the protocol's ``ErrorInfo``."""

    code: str
    message: str
    param: str | None = None


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """All that one step, one abort, or grammars that were settled brought to one front."""

    outputs: list[CoreOutput]


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The answer to a :class:`Ping`."""

    number: int
    stats: CoreStats


class Controlled(msgspec.Struct, frozen=True, tag=True):
    """What came of a :class:`Control`.

    Attributes:
        number: Its number.
        ready: The core as it is now.
        failure: Why it was not done.
    """

    number: int
    ready: Ready
    failure: Failed | None = None


class AdapterChecked(msgspec.Struct, frozen=True, tag=True):
    """The answer to a :class:`CheckAdapter`.

    Attributes:
        number: As asked.
        key: Digest of what is in the adapter, if it fits.
        failure: What is wrong with it, if it does not.
    """

    number: int
    key: str | None = None
    failure: Failed | None = None


class KVChanges(msgspec.Struct, frozen=True, tag=True):
    """What one step changed in the prefix cache; numbered from 0 without a gap."""

    number: int
    changes: list[KVChange]


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The core is alive. Sent when nothing else was for a while."""


CoreMessage = Ready | Failed | Outputs | Pong | AdapterChecked | Controlled | KVChanges | Heartbeat

encode = msgspec.msgpack.Encoder().encode
decode_front = msgspec.msgpack.Decoder(FrontMessage).decode
decode_core = msgspec.msgpack.Decoder(CoreMessage).decode
