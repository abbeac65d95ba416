"""Adapters of a mock engine: names without weights, that come and go as a real engine's do.

A name's path is not looked at, beyond whether it lies in the folder that is allowed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sagellm_protocol.engine import AdapterInfo, AdapterSpec, EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.requests import EmbedRequest, Request, ScoreRequest


class MockAdapters:
    """Those of one engine.

    Args:
        spec: Names those it begins with, and where others may come from.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._keys = {name: _key(path) for name, path in spec.adapters.items()}

    @property
    def offered(self) -> bool:
        """Whether there are, or may be, any."""
        return bool(self._spec.adapters) or self._spec.adapter_root is not None

    @property
    def infos(self) -> tuple[AdapterInfo, ...] | None:
        """As the engine tells of them."""
        return tuple(AdapterInfo(name=name, key=key) for name, key in self._keys.items()) if self.offered else None

    def load(self, adapter: AdapterSpec) -> None:
        """Add one, as :meth:`~sagellm_protocol.interfaces.AdapterHost.load_adapter`."""
        root = self._root()
        path = (root / adapter.path).resolve()
        if not path.is_relative_to(root):
            raise SageLLMError(ErrorCode.PERMISSION_DENIED, f"{adapter.path!r} is not within the adapter_root", "path")
        if adapter.name in self._spec.names or (adapter.name in self._keys and not adapter.replace):
            raise SageLLMError(ErrorCode.CONFLICT, f"the name {adapter.name!r} is in use", "name")
        self._keys[adapter.name] = _key(str(path))

    def unload(self, name: str) -> None:
        """Remove one, as :meth:`~sagellm_protocol.interfaces.AdapterHost.unload_adapter`."""
        self._root()
        if name not in self._keys:
            known = ", ".join(self._keys) or "none"
            raise SageLLMError(ErrorCode.NOT_FOUND, f"no adapter {name!r} here; there are: {known}", "name")
        del self._keys[name]

    def key(self, request: Request | EmbedRequest | ScoreRequest) -> str | None:
        """Identity of the adapter that a request names; ``None`` for the model itself.

        Raises:
            SageLLMError: ``MODEL_NOT_FOUND`` when neither the model nor the adapter it names is here.
        """
        for field, name in (("model", request.model), ("adapter", request.adapter)):
            if name is not None and name not in self._keys and (field == "adapter" or name not in self._spec.names):
                known = ", ".join((*self._spec.names, *self._keys))
                raise SageLLMError(
                    ErrorCode.MODEL_NOT_FOUND, f"no {field} {name!r} here; this engine serves {known}", field
                )
        return self._keys.get(request.adapter or request.model)

    def _root(self) -> Path:
        if self._spec.adapter_root is None:
            raise SageLLMError(ErrorCode.PERMISSION_DENIED, "adapters come and go only where adapter_root is set")
        return Path(self._spec.adapter_root).resolve()


def _key(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()
