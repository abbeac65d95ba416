"""Engines and aliases out of a file that is watched: what it lists comes, what it lists no longer goes.

A file that is damaged or gone changes nothing: what it last listed stays, and :attr:`Discovery.trouble` says why.

.. code-block:: json

    {"engines": [{"id": "a", "url": "http://10.0.0.7:8900", "api_key_env": "ENGINE_KEY", "weight": 2},
                 {"id": "b", "launcher": "subprocess", "spec": {"model": "smollm2-135m"}}],
     "aliases": {"chat": {"smollm2-135m": 95, "smollm2-next": 5}}}
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from sagellm_protocol import EngineSpec, ErrorCode, SageLLMError

from .aliases import check
from .registry import EngineEntry

log = logging.getLogger(__name__)


class _Listed(BaseModel):
    """An engine as people write it down."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1)
    url: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    api_key_env: str | None = None
    launcher: str | None = None
    launch: dict[str, JsonValue] = {}
    spec: EngineSpec | None = None
    weight: float = Field(default=1.0, ge=0)

    def entry(self) -> EngineEntry:
        if (self.url is None) == (self.spec is None):
            raise ValueError(f"engine {self.id!r} needs url or spec, and not both")
        if self.url is not None and (self.launcher is not None or self.launch):
            raise ValueError(f"engine {self.id!r} has a url, and so nothing to launch")
        key = self.api_key
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if key is None:
                raise ValueError(f"engine {self.id!r} wants its key from {self.api_key_env}, which is not set")
        return EngineEntry(
            engine_id=self.id,
            launcher=None if self.spec is None else self.launcher or "subprocess",
            spec=self.spec,
            launch=self.launch,
            url=self.url,
            api_key=key,
            weight=self.weight,
            source="discovered",
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    engines: list[_Listed] = []
    aliases: dict[str, dict[str, float]] = {}


@dataclass(frozen=True)
class Listing:
    """What a file lists."""

    engines: Mapping[str, EngineEntry] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def parse(text: str | bytes) -> Listing:
    """What a file lists.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming what is wrong in it.
    """
    try:
        file = _File.model_validate_json(text)
        entries = [one.entry() for one in file.engines]
    except ValidationError as error:
        raise SageLLMError.from_validation(error) from error
    except ValueError as error:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, str(error), "engines") from error
    ids = [entry.engine_id for entry in entries]
    if len(set(ids)) < len(ids):
        twice = sorted({one for one in ids if ids.count(one) > 1})
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"engine ids are listed twice: {', '.join(twice)}", "engines")
    for name, targets in file.aliases.items():
        check(name, targets)
    return Listing(dict(zip(ids, entries, strict=True)), file.aliases)


class Discovery:
    """Watches a file by looking at it, which works through links, mounts and editors that replace it.

    Args:
        path: The file.
        interval_s: Between two looks.
        apply: Given what the file lists, whenever that has changed.
    """

    def __init__(self, path: Path, interval_s: float, apply: Callable[[Listing], None]) -> None:
        self._path = path
        self._interval_s = interval_s
        self._apply = apply
        self._seen: bytes | None = None
        self.trouble: str | None = None
        """Why what the file lists now is not followed, while that is so."""

    async def watch(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Follow the file as it is now."""
        try:
            content = await asyncio.to_thread(self._path.read_bytes)
            if content != self._seen:
                listing = parse(content)
                self._seen, self.trouble = content, None
                self._apply(listing)
            self.trouble = None
        except OSError as error:
            self._warn(f"{self._path} cannot be read, what it last listed stays: {error.strerror or error}")
        except SageLLMError as error:
            self._warn(f"{self._path} is damaged, what it last listed stays: {error.message}")

    def _warn(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble
