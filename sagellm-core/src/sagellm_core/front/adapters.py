"""The LoRA adapters that requests may name: what the operator named, and what came and went since.

Knows names, keys and folders; whether a folder holds what fits is the core's to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sagellm_core.adapters.base import AdapterRef
from sagellm_protocol.engine import AdapterInfo, AdapterSpec, EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.features import AnyRequest

logger = logging.getLogger(__name__)

Check = Callable[[str], Awaitable[str]]
"""From a folder to the key of the adapter in it; raises what is wrong with it."""


class FrontAdapters:
    """The adapters of one engine, by name.

    Args:
        spec: Names those it begins with, and the folder others may come from.

    Raises:
        SageLLMError: ``CONFLICT`` for an adapter that has the model's own name.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._known: dict[str, AdapterRef] = {}
        self._changing = asyncio.Lock()
        for name in spec.adapters:
            self._refuse_own_name(name)

    @property
    def offered(self) -> bool:
        """Whether there are any, or may be."""
        return bool(self._spec.adapters) or self._spec.adapter_root is not None

    @property
    def infos(self) -> tuple[AdapterInfo, ...] | None:
        """As the engine tells of them."""
        if not self.offered:
            return None
        return tuple(AdapterInfo(name=name, key=adapter.key) for name, adapter in self._known.items())

    async def start(self, check: Check) -> list[AdapterRef]:
        """See that all fit a core that was started; those known from before it, too.

        One that came at run time and whose folder is gone, or holds something else now, is given up with a warning.

        Raises:
            SageLLMError: What is wrong with one that the operator named, by its name.
        """
        paths = {name: adapter.path for name, adapter in self._known.items()}
        for name, path in self._spec.adapters.items():
            paths.setdefault(name, _absolute(path))
        for name, path in paths.items():
            try:
                self._known[name] = AdapterRef(await _checked(name, path, check), path)
            except SageLLMError as error:
                if name in self._spec.adapters:
                    raise
                del self._known[name]
                logger.warning("adapter %r is not served any more: %s", name, error.message)
        return list(self._known.values())

    async def load(self, adapter: AdapterSpec, check: Check) -> tuple[AdapterRef, str | None]:
        """Serve an adapter from now on.

        Returns:
            The adapter, and the key of the one whose place it took where no other name has that.

        Raises:
            SageLLMError: As :meth:`~sagellm_protocol.interfaces.AdapterHost.load_adapter`.
        """
        path = self._allowed(adapter.path)
        self._refuse_own_name(adapter.name)
        if adapter.base is not None and adapter.base not in self._spec.names:
            raise SageLLMError(
                ErrorCode.MODEL_NOT_FOUND,
                f"no model {adapter.base!r} here; this engine serves {', '.join(self._spec.names)}",
                "base",
            )
        async with self._changing:
            before = self._known.get(adapter.name)
            if before is not None and not adapter.replace:
                raise SageLLMError(
                    ErrorCode.CONFLICT,
                    f"an adapter {adapter.name!r} is loaded already; unload it first, or ask for it to be replaced",
                    "name",
                )
            loaded = AdapterRef(await _checked(adapter.name, path, check), path)
            self._known[adapter.name] = loaded
            return loaded, self._orphaned(before)

    async def unload(self, name: str) -> str | None:
        """Serve an adapter no more; its key, where no other name has that.

        Raises:
            SageLLMError: As :meth:`~sagellm_protocol.interfaces.AdapterHost.unload_adapter`.
        """
        self._root()
        async with self._changing:
            if name not in self._known:
                known = ", ".join(self._known) or "none"
                raise SageLLMError(ErrorCode.NOT_FOUND, f"no adapter {name!r} is loaded; there are: {known}", "name")
            return self._orphaned(self._known.pop(name))

    def named_by(self, request: AnyRequest) -> AdapterRef | None:
        """The adapter that a request asks for, in ``adapter`` or as its model; ``None`` for the model itself.

        Raises:
            SageLLMError: ``MODEL_NOT_FOUND`` when there is no such model or adapter; ``INVALID_REQUEST`` when both
                fields name an adapter, and not the same.
        """
        model, adapter = request.model, request.adapter
        if model not in self._spec.names and model not in self._known:
            raise self._unknown("model", model)
        if adapter is None:
            return self._known.get(model)
        if adapter not in self._known:
            raise self._unknown("adapter", adapter)
        if model in self._known and model != adapter:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"model names the adapter {model!r}, and adapter names {adapter!r}",
                "adapter",
            )
        return self._known[adapter]

    def key(self, request: AnyRequest) -> str | None:
        """Key of the adapter that a request asks for, as block hashes use it."""
        adapter = self.named_by(request)
        return None if adapter is None else adapter.key

    def _unknown(self, field: str, name: str) -> SageLLMError:
        served = ", ".join((*self._spec.names, *self._known))
        return SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"no {field} {name!r} here; this engine serves {served}", field)

    def _orphaned(self, adapter: AdapterRef | None) -> str | None:
        if adapter is None or any(other.key == adapter.key for other in self._known.values()):
            return None
        return adapter.key

    def _refuse_own_name(self, name: str) -> None:
        if name in self._spec.names:
            raise SageLLMError(
                ErrorCode.CONFLICT, f"{name!r} is the model's own name; give the adapter another", "name"
            )

    def _root(self) -> Path:
        if self._spec.adapter_root is None:
            raise SageLLMError(
                ErrorCode.PERMISSION_DENIED,
                "adapters may be loaded and unloaded only where the engine was started with a folder that they come"
                " from (adapter_root, --adapter-root)",
            )
        return Path(self._spec.adapter_root).expanduser().resolve()

    def _allowed(self, path: str) -> str:
        """Where an adapter is; links are followed before it is compared with the folder that is allowed."""
        root = self._root()
        try:
            place = (root / path).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{path!r:.200} is no path: {error}", "path") from error
        if not place.is_relative_to(root):
            raise SageLLMError(
                ErrorCode.PERMISSION_DENIED,
                f"{path!r:.200} is not within the folder that adapters may come from",
                "path",
            )
        return str(place)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


async def _checked(name: str, path: str, check: Check) -> str:
    try:
        return await check(path)
    except SageLLMError as error:
        raise SageLLMError(error.code, f"adapter {name!r}: {error.message}", "path") from error
