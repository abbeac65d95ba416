"""What an operator may set, read from the environment and overridden by arguments.

Every setting is an environment variable with the prefix ``SAGELLM_GATEWAY_``, or second ``SAGE_GATEWAY_``, which SAGE's
own gateway used. Knows nothing of how a setting is used.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sagellm_protocol import ErrorCode, SageLLMError

PREFIX = "SAGELLM_GATEWAY_"
LEGACY_PREFIX = "SAGE_GATEWAY_"
"""Of SAGE's own gateway; understood where the other is not set."""


def _split(value: Any) -> Any:
    """A comma-separated list, as it is written in an environment variable."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


Listed = BeforeValidator(_split)


class GatewaySettings(BaseSettings):
    """Settings of one gateway. Lists are comma-separated in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8889, ge=0, le=65535)
    """0 takes any free port."""
    log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = "info"

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode, Listed] = ()
    """Keys that callers may present; with none, every caller is let in."""
    allow_unauthenticated: bool = False
    """Serve beyond this machine without a key."""
    open_paths: Annotated[tuple[str, ...], NoDecode, Listed] = ("/health", "/ready")
    """Paths that need no key."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, Listed] = ()
    """Names, besides this machine's own, that callers without a key may use for it; ``*`` is any."""
    cors_origins: Annotated[tuple[str, ...], NoDecode, Listed] = ()
    """Origins whose pages may call from a browser; ``*`` is any, and then without credentials."""

    allow_management: bool = False
    """Let callers put engines to sleep, wake them and reload their weights; each with a key, where there are keys."""

    max_body_bytes: int = Field(default=16 * 2**20, ge=1)
    max_header_bytes: int = Field(default=64 * 2**10, ge=1024)
    max_prompts: int = Field(default=256, ge=1)
    """Prompts of one completion request."""
    max_embedding_inputs: int = Field(default=2048, ge=1)
    """Inputs of one embedding request."""

    read_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that a caller has to send its headers, and again its body."""
    connection_idle_s: float = Field(default=75.0, gt=0)
    """Seconds after which an unused connection is closed; above a minute, so that the usual proxy closes first."""
    sse_keep_alive_s: float = Field(default=15.0, gt=0)
    """Seconds of silence after which a stream shows a sign of life, for the proxies between."""
    stall_timeout_s: float = Field(default=120.0, gt=0)
    """Seconds a reader may take nothing of what waits for it before its request is aborted."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds that requests in flight have to finish after SIGTERM."""
    max_heartbeat_age_s: float = Field(default=15.0, gt=0)
    """Seconds since an engine's last heartbeat after which it no longer counts as ready."""

    control_plane: str = "default"
    """Entry point of the group ``sagellm.control_planes`` to make, when none is passed in."""
    engines: Annotated[tuple[str, ...], NoDecode, Listed] = ()
    """Addresses of engine servers that the control plane made here attaches."""
    engine_api_key: SecretStr | None = None
    """Key that those engine servers want."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then our variables, then those of SAGE's gateway."""
        return init_settings, env_settings, EnvSettingsSource(settings_cls, env_prefix=LEGACY_PREFIX)

    @property
    def authenticated(self) -> bool:
        """Whether callers need a key."""
        return bool(self.api_keys)

    @property
    def local_only(self) -> bool:
        """Whether callers are let in because they are on this machine, and for no better reason."""
        return is_loopback(self.host) and not (self.authenticated or self.allow_unauthenticated)

    def refuse_exposure(self) -> None:
        """Refuse to serve beyond this machine without a key, unless that was asked for.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` with the three ways out.
        """
        if not (self.authenticated or self.allow_unauthenticated or is_loopback(self.host)):
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"host {self.host!r} is reachable from other machines and no API key is set: set api_keys"
                f" (--api-key, or {PREFIX}API_KEYS), or bind to 127.0.0.1, or set allow_unauthenticated"
                f" ({PREFIX}ALLOW_UNAUTHENTICATED=1) where something else keeps strangers out",
                "host",
            )


def load_settings(**overrides: Any) -> GatewaySettings:
    """Read the environment, under ``overrides``.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming each setting at fault.
    """
    try:
        return GatewaySettings(**overrides)
    except ValidationError as error:
        raise SageLLMError.from_validation(error) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
