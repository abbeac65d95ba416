from __future__ import annotations

from pathlib import Path

import pytest

from sagellm_protocol import Engine, EngineSpec, ErrorCode, SageLLMError, plugins


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a distribution of one module as pip would leave it: code, metadata and entry points on ``sys.path``."""

    def install(name: str, points: dict[str, dict[str, str]], code: str = "def create(*args): return 'made'\n") -> None:
        root = tmp_path / name
        info = root / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (root / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        groups = (
            f"[{group}]\n" + "".join(f"{point} = {value}\n" for point, value in entries.items())
            for group, entries in points.items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups))
        monkeypatch.syspath_prepend(str(root))

    return install


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_an_installed_distribution_provides_an_implementation(install, group: str) -> None:
    name = f"toy_{group.replace('.', '_')}"
    install(name, {group: {"toy": f"{name}:create"}})
    assert plugins.installed(group)["toy"].value == f"{name}:create"
    assert plugins.load(group, "toy")() == "made"


def test_what_is_installed_while_the_process_runs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "late" not in plugins.installed(plugins.ENGINES)
    info = tmp_path / "late-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.ENGINES}]\nlate = json:dumps\n")
    assert "late" in plugins.installed(plugins.ENGINES)


def test_the_mock_engine_is_installed_with_the_contract() -> None:
    engine = plugins.load(plugins.ENGINES, "mock")(EngineSpec(engine="mock", model="m"))
    assert engine.info.mock


def test_an_unknown_name_lists_what_is_installed(install) -> None:
    install("toy_listed", {plugins.ENGINES: {"toy-b": "toy_listed:create", "toy-a": "toy_listed:create"}})
    with pytest.raises(SageLLMError) as refusal:
        plugins.load(plugins.ENGINES, "made-up")
    assert refusal.value.code is ErrorCode.NOT_INSTALLED
    assert "'made-up'" in refusal.value.message
    listed = refusal.value.message.split("installed: ")[1].split(", ")
    assert {"mock", "toy-a", "toy-b"} <= set(listed)
    assert listed == sorted(listed)


def test_an_empty_group_says_what_would_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(SageLLMError, match="pip install isagellm-backend"):
        plugins.load(plugins.BACKENDS, "cpu")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import a_library_that_is_not_there\n", "a_library_that_is_not_there"),
        ("raise OSError('libtoy.so: cannot open shared object file')\n", "libtoy.so"),
        ("def created(): pass\n", "create"),
    ],
    ids=["missing library", "missing shared object", "missing attribute"],
)
def test_a_broken_plugin_says_whose_it_is_and_why(install, code: str, reason: str) -> None:
    name = f"toy_broken_{len(reason)}"
    install(name, {plugins.BACKENDS: {"broken": f"{name}:create"}}, code)
    with pytest.raises(SageLLMError) as refusal:
        plugins.load(plugins.BACKENDS, "broken")
    assert refusal.value.code is ErrorCode.NOT_INSTALLED
    assert f"{name}:create from {name}" in refusal.value.message
    assert reason in refusal.value.message


def test_a_broken_plugin_harms_nobody_else(install) -> None:
    install("toy_bad", {plugins.ENGINES: {"bad": "toy_bad:create"}}, "raise RuntimeError('no')\n")
    install("toy_good", {plugins.ENGINES: {"good": "toy_good:create"}})
    assert plugins.load(plugins.ENGINES, "good")() == "made"


def test_a_plugin_may_refuse_in_its_own_words(install) -> None:
    code = "from sagellm_protocol import *\nraise SageLLMError(ErrorCode.UNSUPPORTED, 'needs a driver')\n"
    install("toy_proud", {plugins.BACKENDS: {"proud": "toy_proud:create"}}, code)
    with pytest.raises(SageLLMError, match=r"^needs a driver$"):
        plugins.load(plugins.BACKENDS, "proud")


def test_two_claims_of_a_name_conflict_naming_both(install) -> None:
    install("toy_one", {plugins.POLICIES: {"contested": "toy_one:create"}})
    install("toy_two", {plugins.POLICIES: {"contested": "toy_two:create"}})
    with pytest.raises(SageLLMError) as refusal:
        plugins.load(plugins.POLICIES, "contested")
    assert refusal.value.code is ErrorCode.CONFLICT
    assert "toy_one:create from toy_one" in refusal.value.message
    assert "toy_two:create from toy_two" in refusal.value.message
    with pytest.raises(SageLLMError, match="contested"):
        plugins.installed(plugins.POLICIES)


def test_a_conflict_over_one_name_leaves_the_others_alone(install) -> None:
    install("toy_one", {plugins.POLICIES: {"contested": "toy_one:create", "own": "toy_one:create"}})
    install("toy_two", {plugins.POLICIES: {"contested": "toy_two:create"}})
    assert plugins.load(plugins.POLICIES, "own")() == "made"


def test_one_distribution_seen_twice_is_no_conflict(install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("toy_same", {plugins.POLICIES: {"same": "toy_same:create"}})
    install_again = tmp_path / "again"
    (tmp_path / "toy_same").rename(install_again)
    install("toy_same", {plugins.POLICIES: {"same": "toy_same:create"}})
    monkeypatch.syspath_prepend(str(install_again))
    assert plugins.load(plugins.POLICIES, "same")() == "made"


def test_what_a_plugin_makes_is_checked_against_its_interface(install) -> None:
    engine = plugins.make(plugins.ENGINES, "mock", Engine, EngineSpec(engine="mock", model="m"))
    assert engine.info.model == "m"
    install("toy_half", {plugins.ENGINES: {"half": "toy_half:create"}})
    with pytest.raises(SageLLMError) as refusal:
        plugins.make(plugins.ENGINES, "half", Engine, EngineSpec(engine="half", model="m"))
    assert refusal.value.code is ErrorCode.NOT_INSTALLED
    assert "makes a str, which is no Engine" in refusal.value.message
    assert "generate" in refusal.value.message
