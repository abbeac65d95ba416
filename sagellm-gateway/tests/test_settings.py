from __future__ import annotations

import pytest

from sagellm_gateway import GatewaySettings, load_settings
from sagellm_gateway.settings import PREFIX
from sagellm_protocol import ErrorCode, SageLLMError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GatewaySettings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    for name in ("SAGE_GATEWAY_HOST", "SAGE_GATEWAY_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_safe() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8889)
    assert settings.cors_origins == ()
    assert not settings.allow_unauthenticated


def test_every_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "host": "::1",
        "port": "1",
        "log_level": "debug",
        "api_keys": "a, b,",
        "allow_unauthenticated": "1",
        "allow_management": "1",
        "open_paths": "/health,/metrics",
        "allowed_hosts": "box.example",
        "cors_origins": "https://a.example,https://b.example",
        "control_plane": "other",
        "engines": "http://127.0.0.1:9000",
        "engine_api_key": "k",
    }
    for name in GatewaySettings.model_fields:
        monkeypatch.setenv(PREFIX + name.upper(), given.get(name, "4096"))
    settings, plain = load_settings(), GatewaySettings.model_construct()
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]
    assert settings.open_paths == ("/health", "/metrics")
    for name in GatewaySettings.model_fields:
        assert getattr(settings, name) != getattr(plain, name), name


def test_the_names_of_sages_gateway_are_understood_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_GATEWAY_PORT", "7001")
    monkeypatch.setenv("SAGE_GATEWAY_HOST", "localhost")
    assert (load_settings().host, load_settings().port) == ("localhost", 7001)
    monkeypatch.setenv(PREFIX + "PORT", "7002")
    assert load_settings().port == 7002
    assert load_settings(port=7003).port == 7003


def test_a_wrong_setting_is_refused_by_name() -> None:
    for name, value in {"port": 70_000, "drain_s": -1, "log_level": "loud", "colour": "red"}.items():
        with pytest.raises(SageLLMError, match=name) as caught:
            load_settings(**{name: value})
        assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_keys_are_not_shown() -> None:
    assert "hunter2" not in repr(load_settings(api_keys="hunter2", engine_api_key="hunter2"))
