"""What is kept of an engine: enough to start or reach it again. Knows nothing of files."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from typing_extensions import Self

from sagellm_protocol import EngineSpec

Source = Literal["asked", "discovered"]
"""Whether someone asked for an engine, or a file did, which may as well ask for it no longer."""


class EngineEntry(BaseModel):
    """One engine. Either launched (``launcher`` and ``spec``) or attached (``url``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_id: str = Field(min_length=1)
    launcher: str | None = None
    spec: EngineSpec | None = None
    launch: dict[str, JsonValue] = {}
    """Options of the launcher."""
    url: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    names: tuple[str, ...] = ()
    """Names it served when it was last heard of."""
    weight: float = Field(default=1.0, ge=0)
    drained: bool = False
    leaving: bool = False
    """Being stopped: whoever finds it so has to finish that."""
    source: Source = "asked"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.url is None) == (self.spec is None) or (self.launcher is None) != (self.spec is None):
            raise ValueError("an engine is launched (launcher and spec) or attached (url)")
        return self
