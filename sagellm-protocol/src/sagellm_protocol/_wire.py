"""The two manners of wire model: what asks is strict, what reports is lenient.

Knows nothing of any message in particular.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

# Building a model's validator takes about a millisecond, and few programs use every message: each is built when it is
# first used. Bytes are hashes and opaque payloads, which JSON carries as hexadecimal digits.
_SHARED = ConfigDict(frozen=True, defer_build=True, ser_json_bytes="hex", val_json_bytes="hex")

PROTOCOL_VERSION = "0.1"
"""Version of everything that crosses a process or host boundary; apart from any package's version."""


class Ask(BaseModel):
    """A frozen message that asks for something.

    Unknown fields are refused by name: a field that is accepted is honoured. ``to_wire`` leaves out fields at their
    default, so a newer client may speak to an older engine as long as it does not use what that engine lacks.
    """

    model_config = ConfigDict(**_SHARED, extra="forbid", allow_inf_nan=False)

    def to_wire(self) -> bytes:
        """Encode as UTF-8 JSON without the fields that hold their default."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Report(BaseModel):
    """A frozen message that reports something.

    Unknown fields are ignored, so that an older reader understands a newer writer.
    """

    model_config = ConfigDict(**_SHARED, extra="ignore", ser_json_inf_nan="null")

    def to_wire(self) -> bytes:
        """Encode as UTF-8 JSON without the fields that hold ``None``."""
        return self.model_dump_json(exclude_none=True).encode()
