"""What a KV cache block is called: the block hash, and the events and tickets that speak of blocks.

A block is a fixed number of consecutive tokens of one sequence. Its hash depends on every token before it, so that two
sequences share a block's hash exactly when they may share its keys and values. Every engine, router and simulator
computes the same hash from the same tokens, on any host and in any process; Python's own ``hash`` is never used.

The definition (version 1)::

    text(s)  = 0xFFFFFFFF                      if s is absent
             = u32(len(utf8(s))) utf8(s)       otherwise
    root     = SHA-256("sagellm.block.1" 0x00 text(model) text(adapter) text(cache_salt))
    block    = SHA-256(parent u32(n) u32(t_1) … u32(t_n) text(media_1) … text(media_m))

All integers are little-endian. ``parent`` is the 32-byte hash of the block before it, or ``root``. ``media`` are the
keys of images, audio and the like whose placeholders stand in the block, in order. A block that is not full has no
hash.

Knows nothing of where blocks live or who evicts them.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from ._wire import Report

BlockHash = Annotated[bytes, WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"})]
"""32 bytes; lowercase hexadecimal where JSON carries it."""

_DOMAIN = b"sagellm.block.1\0"
_ABSENT = b"\xff\xff\xff\xff"
_LITTLE_ENDIAN = array("I", [1]).tobytes() == b"\1\0\0\0"


def _text(value: str | None) -> bytes:
    if value is None:
        return _ABSENT
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded


def root_hash(model: str, adapter: str | None = None, cache_salt: str | None = None) -> BlockHash:
    """Hash that the first block of a sequence has as its parent.

    Args:
        model: Identity of the weights, not a served alias: two engines share blocks only if they agree on it.
        adapter: Identity of the LoRA adapter, if any.
        cache_salt: Secret of a tenant who shares with nobody else.
    """
    return hashlib.sha256(_DOMAIN + _text(model) + _text(adapter) + _text(cache_salt)).digest()


def block_hash(parent: BlockHash, token_ids: Sequence[int], media: Iterable[str] = ()) -> BlockHash:
    """Hash of one full block.

    Args:
        parent: Hash of the block before it, or :func:`root_hash`.
        token_ids: The block's tokens, each below 2**32.
        media: Keys of the media whose placeholders stand in the block, in order.
    """
    digest = hashlib.sha256(parent)
    digest.update(struct.pack("<I", len(token_ids)))
    packed = array("I", token_ids)
    if not _LITTLE_ENDIAN:
        packed.byteswap()
    digest.update(packed.tobytes())
    for key in media:
        digest.update(_text(key))
    return digest.digest()


def block_hashes(root: BlockHash, token_ids: Sequence[int], block_size: int) -> tuple[BlockHash, ...]:
    """Hashes of a sequence's full blocks, in order; the tokens of the last, partial block have none.

    Args:
        root: :func:`root_hash`, or the hash of the block before ``token_ids`` to go on from there.
        token_ids: The sequence's tokens.
        block_size: Tokens in a block.
    """
    hashes = []
    parent = root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        hashes.append(parent)
    return tuple(hashes)


class BlocksStored(Report):
    """Blocks became available to requests that share their prefix."""

    type: Literal["stored"] = "stored"
    block_hashes: tuple[BlockHash, ...]
    """In chain order."""
    parent: BlockHash | None = None
    """Hash of the block before the first; absent when that is the root."""
    block_size: int = Field(gt=0)
    medium: str = "device"
    """Where they are held: ``device``, ``host``, ``disk``."""


class BlocksRemoved(Report):
    """Blocks are no longer held in this medium."""

    type: Literal["removed"] = "removed"
    block_hashes: tuple[BlockHash, ...]
    medium: str = "device"


class BlocksCleared(Report):
    """Nothing is held any more: whatever was known of this engine's blocks is void."""

    type: Literal["cleared"] = "cleared"


KVEvent = Annotated[BlocksStored | BlocksRemoved | BlocksCleared, Field(discriminator="type")]


class KVEventBatch(Report):
    """What changed in one engine's cache, in order.

    A gap in ``sequence``, or another ``epoch``, means that events were lost: start again from an empty view.
    """

    engine_id: str
    epoch: str
    """Changes whenever the engine's cache starts anew."""
    sequence: int = Field(ge=0)
    events: tuple[KVEvent, ...]


class KVLayout(Report):
    """How a block's bytes are laid out, so that a receiver can tell whether it may take them as they are."""

    dtype: str
    block_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    tensor_parallel: int = Field(default=1, gt=0)


class KVTransferTicket(Report):
    """A claim on computed blocks that another engine may fetch.

    The source holds a lease on the blocks until the ticket is claimed or ``expires_in_s`` has passed.
    """

    ticket_id: str
    source: str
    """Engine that holds the blocks."""
    connector: str
    """Name of the transfer mechanism that both ends must offer."""
    block_hashes: tuple[BlockHash, ...]
    num_tokens: int = Field(ge=0)
    """Tokens whose keys and values the blocks hold."""
    layout: KVLayout
    expires_in_s: float = Field(gt=0)
    """Time remaining when the ticket was sent; clocks are never compared across hosts."""
    payload: Annotated[bytes, WithJsonSchema({"type": "string", "pattern": "^([0-9a-f]{2})*$"})] = b""
    """Whatever else the connector needs."""
