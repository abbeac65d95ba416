"""Blocks that the device gave up, or that another process wrote, come back before their tokens are computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core_harness import LONG_S, Harness, assert_all_free
from fake_executor import FakeExecutor, alone
from sagellm_core.offload.base import Named
from sagellm_core.offload.disk import DiskTier
from sagellm_core.offload.economy import Economy
from sagellm_core.offload.host import HostTier
from sagellm_core.offload.layout import BlockLayout
from sagellm_core.offload.shelf import Shelf
from sagellm_protocol import ErrorCode, SageLLMError

BLOCK = 4
BLOCK_BYTES = 16 * BLOCK
Opener = Callable[[BlockLayout], Shelf]


def prompt(text: int, length: int) -> list[int]:
    return [(7 * text + 3 * position) % 96 + 1 for position in range(length)]


class Offloading(Harness):
    """A harness over a core that keeps blocks elsewhere, too."""

    def __init__(self, open_shelf: Opener, *, num_blocks: int = 16, **options: Any) -> None:
        super().__init__(FakeExecutor(), num_blocks=num_blocks, block_size=BLOCK, open_shelf=open_shelf, **options)

    def write_all(self) -> None:
        while self.core.has_chores:
            self.settle()
        offload = self.core._offload
        assert offload is not None
        offload.flush()
        self.settle()

    def ask(self, ticket: int, tokens: list[int], max_tokens: int = 1, **options: Any) -> int:
        """Prompt tokens that were found, once the answer is the model's own."""
        self.add(ticket, tokens, max_tokens, **options)
        self.run()
        assert self.tokens[ticket, 0] == alone(tokens, max_tokens)
        return self.beginnings[ticket, 0].cached_tokens


@pytest.fixture
def opened() -> Iterator[Callable[..., Offloading]]:
    harnesses: list[Offloading] = []

    def make(open_shelf: Opener, **options: Any) -> Offloading:
        harnesses.append(Offloading(open_shelf, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        assert_all_free(harness.core)
        harness.core.stop()


def host(limit: int = 1 << 20) -> Opener:
    return lambda layout: Shelf([HostTier(limit)])


def disk(folder: Path, limit: int = 1 << 20) -> Opener:
    return lambda layout: Shelf([DiskTier(folder, limit, layout)])


def both(folder: Path) -> Opener:
    return lambda layout: Shelf([HostTier(1 << 20), DiskTier(folder, 1 << 20, layout)])


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


@pytest.mark.parametrize("medium", ["host", "disk"])
def test_what_was_evicted_is_found_again(medium: str, tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    harness = opened(host() if medium == "host" else disk(tmp_path), num_blocks=8)
    assert harness.ask(0, prompt(0, 25)) == 0
    harness.write_all()
    for ticket in (1, 2):
        harness.ask(ticket, prompt(ticket, 30))
    stats = harness.core.stats()
    assert stats.evicted_blocks > 0
    assert harness.ask(3, prompt(0, 25)) == 24
    stats = harness.core.stats()
    assert (stats.host_hit_tokens, stats.disk_hit_tokens) == ((24, 0) if medium == "host" else (0, 24))
    assert stats.loaded_blocks == 6
    assert stats.prefix_hit_tokens == 24


def test_another_process_finds_what_one_wrote(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25))
    first.write_all()
    second = opened(disk(tmp_path))
    assert second.ask(0, prompt(0, 25)) == 24
    # And what the first writes while the second runs.
    first.ask(1, prompt(1, 17))
    first.write_all()
    assert second.ask(1, prompt(1, 17)) == 16


def test_what_is_on_the_device_is_not_read_again(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    harness = opened(both(tmp_path))
    harness.ask(0, prompt(0, 25))
    harness.write_all()
    assert harness.ask(1, prompt(0, 25)) == 24
    stats = harness.core.stats()
    assert (stats.host_hit_tokens, stats.disk_hit_tokens, stats.loaded_blocks) == (0, 0, 0)


def test_a_block_read_from_disk_is_in_host_memory_from_then_on(
    tmp_path: Path, opened: Callable[..., Offloading]
) -> None:
    writer = opened(disk(tmp_path))
    writer.ask(0, prompt(0, 25))
    writer.write_all()
    harness = opened(both(tmp_path), num_blocks=8)
    for ticket, text in enumerate((0, 1, 2, 0)):
        harness.ask(ticket, prompt(text, 25))
        harness.write_all()
    stats = harness.core.stats()
    assert (stats.disk_hit_tokens, stats.host_hit_tokens) == (24, 24)


def test_another_salt_finds_nothing(opened: Callable[..., Offloading], tmp_path: Path) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25), cache_salt="a")
    first.write_all()
    second = opened(disk(tmp_path))
    assert second.ask(0, prompt(0, 25), cache_salt="b") == 0
    assert second.ask(1, prompt(0, 25)) == 0
    assert second.ask(2, prompt(0, 25), cache_salt="a") == 24


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign", "empty"])
def test_a_damaged_file_is_deleted_said_once_and_computed_again(
    damage: str, tmp_path: Path, opened: Callable[..., Offloading], caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25))
    first.write_all()
    for path in files(tmp_path):
        content = path.read_bytes()
        path.write_bytes(
            {
                "short": content[:-1],
                "flipped": content[:-1] + bytes([content[-1] ^ 1]),
                "foreign": content.replace(b'"backend": "fake"', b'"backend": "fate"'),
                "empty": b"",
            }[damage]
        )
    second = opened(disk(tmp_path))
    assert second.ask(0, prompt(0, 25)) == 0
    assert len([record for record in caplog.records if "said once" in record.message]) == 1
    second.write_all()
    third = opened(disk(tmp_path))
    # The first file was found out and written anew; the others are only looked at once the one before is whole.
    assert third.ask(0, prompt(0, 25)) >= 4


def test_a_gap_ends_what_is_found(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25))
    first.write_all()
    chain = _hashes(prompt(0, 25))
    next(path for path in files(tmp_path) if path.name.startswith(chain[3])).unlink()
    assert opened(disk(tmp_path)).ask(0, prompt(0, 25)) == 12


def test_another_layout_shares_the_folder_and_no_block(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25))
    first.write_all()

    def other(layout: BlockLayout) -> Shelf:
        return Shelf([_tier(tmp_path, 1 << 20, layout, "int8")])

    harness = opened(other)
    assert harness.ask(0, prompt(0, 25)) == 0
    harness.write_all()
    assert len(files(tmp_path)) == 12


def test_the_limit_is_of_all_layouts_together(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    for kept_in in ("float32", "bfloat16", "int8"):
        harness = opened(lambda layout, kept_in=kept_in: Shelf([_tier(tmp_path, 8000, layout, kept_in)]))
        harness.ask(0, prompt(0, 25))
        harness.write_all()
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 8000
    assert len({path.parent for path in files(tmp_path)}) > 1


def _tier(folder: Path, limit: int, layout: BlockLayout, kv_dtype: str) -> DiskTier:
    return DiskTier(folder, limit, replace(layout, kv_dtype=kv_dtype))


def test_a_folder_keeps_to_its_limit_and_gives_up_what_was_used_longest_ago(
    tmp_path: Path, opened: Callable[..., Offloading]
) -> None:
    (tmp_path / "notes.txt").write_text("none of ours")
    probe = opened(disk(tmp_path))
    probe.ask(0, prompt(0, 5))
    probe.write_all()
    size = files(tmp_path)[0].stat().st_size
    limit = 12 * size
    harness = opened(disk(tmp_path, limit), num_blocks=8)
    for ticket in range(1, 9):
        harness.ask(ticket, prompt(ticket, 25))
        harness.write_all()
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    kept = {path.name[:64] for path in files(tmp_path)}
    assert kept >= set(_hashes(prompt(8, 25)))
    assert not kept & set(_hashes(prompt(1, 25)))
    assert (tmp_path / "notes.txt").exists()
    assert harness.core.stats().disk_kv_bytes == sum(path.stat().st_size for path in files(tmp_path))


def test_host_memory_keeps_to_its_limit(opened: Callable[..., Offloading]) -> None:
    harness = opened(host(7 * BLOCK_BYTES), num_blocks=8)
    for ticket in range(6):
        harness.ask(ticket, prompt(ticket, 25))
        harness.write_all()
        assert (harness.core.stats().host_kv_bytes or 0) <= 7 * BLOCK_BYTES
    assert harness.ask(6, prompt(3, 25)) == 0, "it was given up"


def test_the_end_of_a_prefix_is_given_up_before_its_beginning(
    tmp_path: Path, opened: Callable[..., Offloading]
) -> None:
    harness = opened(host(9 * BLOCK_BYTES), num_blocks=8)
    for ticket in range(2):
        harness.ask(ticket, prompt(ticket, 25))
        harness.write_all()
    harness.ask(2, prompt(2, 5))  # takes the device's place of what was asked first
    assert harness.ask(3, prompt(0, 25)) == 12


def test_events_name_the_medium(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    harness = opened(both(tmp_path), num_blocks=8)
    harness.core.kv_log.watched = True
    harness.ask(0, prompt(0, 9))
    harness.write_all()
    changes = harness.core.kv_log.take()
    chain = [bytes.fromhex(name) for name in _hashes(prompt(0, 9))]
    for medium in ("device", "host", "disk"):
        told = [change for change in changes if change.medium == medium]
        assert [block for change in told for block in change.blocks] == chain
        assert all(change.stored for change in told)
        assert told[0].parent is None
    for ticket in (1, 2):
        harness.ask(ticket, prompt(ticket, 30))
        harness.write_all()
    changes = harness.core.kv_log.take()
    gone = {change.medium for change in changes if not change.stored and chain[0] in change.blocks}
    assert gone == {"device"}


def test_a_request_that_is_aborted_while_its_prefix_comes_leaves_nothing_behind(
    tmp_path: Path, opened: Callable[..., Offloading]
) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25))
    first.write_all()
    harness = opened(disk(tmp_path))
    harness.add(0, prompt(0, 25), 4)
    harness.step()
    harness.abort(0)
    assert harness.ask(1, prompt(0, 25)) in (0, 24)
    harness.run()


def test_neighbours_go_on_while_a_prefix_comes(tmp_path: Path, opened: Callable[..., Offloading]) -> None:
    first = opened(disk(tmp_path))
    first.ask(0, prompt(0, 25))
    first.write_all()
    gate = threading.Event()

    class Slow(DiskTier):
        def read(self, name: Named) -> bytes | None:
            assert gate.wait(LONG_S)
            return super().read(name)

    harness = opened(lambda layout: Shelf([Slow(tmp_path, 1 << 20, layout)]))
    harness.add(0, prompt(3, 5), 8)
    harness.add(1, prompt(0, 25), 2)
    for _ in range(8):
        harness.settle()
        harness.step()
    assert harness.tokens[0, 0] == alone(prompt(3, 5), 8)
    assert not harness.tokens[1, 0]
    gate.set()
    harness.run()
    assert harness.tokens[1, 0] == alone(prompt(0, 25), 2)
    assert harness.beginnings[1, 0].cached_tokens == 24


def test_a_prefix_larger_than_what_is_there_comes_as_far_as_there_is_room(
    tmp_path: Path, opened: Callable[..., Offloading]
) -> None:
    first = opened(disk(tmp_path), num_blocks=32)
    first.ask(0, prompt(0, 100))
    first.write_all()
    harness = opened(disk(tmp_path), num_blocks=26, max_num_seqs=2)
    harness.add(0, prompt(1, 20), 12)
    harness.step()
    harness.add(1, prompt(0, 100), 2)
    harness.run()
    assert harness.tokens[1, 0] == alone(prompt(0, 100), 2)
    assert harness.tokens[0, 0] == alone(prompt(1, 20), 12)


def test_what_was_measured_decides_and_is_measured_again() -> None:
    economy = Economy()
    assert economy.pays(["disk"], 16), "nothing is known yet"
    economy.computed(512, 0.256)
    assert economy.pays(["disk"], 16), "reading is not known yet"
    economy.loaded("disk", 1, 0.1)
    assert [economy.pays(["disk"], 16) for _ in range(16)].count(True) == 1
    assert economy.pays(["disk", *["host"]], 16), "memory is not known yet"
    for _ in range(40):
        economy.loaded("disk", 1, 0.001)
    assert economy.pays(["disk"], 16)


def _hashes(tokens: list[int]) -> list[str]:
    from sagellm_protocol.blocks import block_hashes, root_hash

    return [block.hex() for block in block_hashes(root_hash("fake"), tokens, BLOCK)]


def test_a_place_that_cannot_be_opened_for_other_weights_leaves_requests_served(
    opened: Callable[..., Offloading],
) -> None:
    shelves = [Shelf([HostTier(1 << 20)])]

    def open_once(layout: BlockLayout) -> Shelf:
        if not shelves:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "the folder has gone", "kv_offload_dir")
        return shelves.pop()

    harness = opened(open_once)
    harness.ask(0, prompt(1, 40))
    harness.write_all()
    with pytest.raises(SageLLMError, match="the folder has gone"):
        harness.core.reload(Path("other"))
    harness.ask(1, prompt(1, 40))
    assert harness.ask(2, prompt(1, 40)) > 0
    assert harness.core.stats().host_kv_bytes is None
