"""Bodies of the two routes by which LoRA adapters come and go, as vLLM names them.

Knows nothing of how they are served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from sagellm_protocol import AdapterSpec

from .body import Body, Refused

ADAPTER_NAMES: Mapping[str, str] = {"name": "lora_name", "path": "lora_path", "base": "base_model_name"}


class LoadAdapterBody(Body):
    """``/v1/load_lora_adapter``."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "is_3d_lora_weight": Refused((False,), "adapters of experts are not offered")
    }

    lora_name: str = Field(min_length=1, max_length=512)
    """What requests name as their model."""
    lora_path: str = Field(min_length=1)
    """Its folder on the engine's host, within the engine's ``adapter_root``; relative to that, or absolute."""
    load_inplace: bool = False
    """Take the place of an adapter of the same name."""
    base_model_name: str | None = Field(default=None, min_length=1, max_length=512)
    """The model it is for, where several are served."""

    def adapter(self) -> AdapterSpec:
        """In the contract's words."""
        return AdapterSpec(
            name=self.lora_name, path=self.lora_path, base=self.base_model_name, replace=self.load_inplace
        )


class UnloadAdapterBody(Body):
    """``/v1/unload_lora_adapter``."""

    refused: ClassVar[Mapping[str, Refused]] = {"lora_int_id": Refused((), "adapters are known by name alone")}

    lora_name: str = Field(min_length=1, max_length=512)
