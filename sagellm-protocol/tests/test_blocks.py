from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from sagellm_protocol import block_hash, block_hashes, root_hash


def number(value: int) -> bytes:
    return bytes((value >> shift) & 0xFF for shift in (0, 8, 16, 24))


def text(value: str | None) -> bytes:
    return b"\xff" * 4 if value is None else number(len(value.encode("utf-8"))) + value.encode("utf-8")


def second_root(model: str, adapter: str | None, salt: str | None) -> bytes:
    """The definition's root, written a second time."""
    return hashlib.sha256(b"sagellm.block.1\x00" + text(model) + text(adapter) + text(salt)).digest()


def second_block(parent: bytes, tokens: list[int], media: tuple[str, ...] = ()) -> bytes:
    """The definition's block, written a second time."""
    body = number(len(tokens)) + b"".join(number(token) for token in tokens) + b"".join(text(key) for key in media)
    return hashlib.sha256(parent + body).digest()


ROOTS = {
    ("smollm2-135m", None, None): "b9a8d95d32098d5b552876adecd21bcee11169fa4e0f37ff931dc5f89eaedcdd",
    ("smollm2-135m", "lora-1", None): "f3725f299a8cccff964d0b6318404cf8be1a8bcbb4799f15cd490de822a11d4f",
    ("smollm2-135m", None, "tenant"): "6266d7f9c98270515a50b2b39266e64f145b9fae133e1008c693e62b695e4a74",
    ("smollm2-135m", "", ""): "a7853911d72925aabd0b10065c7e678fd74492acd81989534d3cbe3306183d09",
    ("modèle", None, None): "550b94e70475e1d8cd1863b01142884ae6793e0992e14f2c98ab38503f3be5c7",
}
CHAIN = [
    "094b7f96e4e35da5fe691d1da25bc99f38bd5c6c7fdc77b0f3227a5c3f061e7b",
    "32c933981d1171e24b31852914099d3d9a044d89710e04ad2ab516709773ed2e",
]
MEDIA = "222bc3cf50a03d4207763420d6d9f2376059e460fb6af4a734cc06b0782c00a7"
LARGEST_TOKEN = "8ce5bfb7840a2d95fabe08b7db200a20d7dfb141f3146905146230ba11b5e158"


@pytest.mark.parametrize(("keys", "value"), ROOTS.items())
def test_a_root_is_what_it_always_was(keys, value) -> None:
    assert root_hash(*keys).hex() == value == second_root(*keys).hex()


def test_a_chain_is_what_it_always_was() -> None:
    tokens = [0, 1, 2, 3, 49151, 7, 7, 7, 99]
    first = second_block(second_root("smollm2-135m", None, None), tokens[:4])
    second = second_block(first, tokens[4:8])
    hashes = block_hashes(root_hash("smollm2-135m"), tokens, 4)
    assert [block.hex() for block in hashes] == CHAIN == [first.hex(), second.hex()]


def test_media_are_part_of_a_block() -> None:
    root = root_hash("m")
    assert block_hash(root, [1, 2], ("image-1", "image-2")).hex() == MEDIA
    assert second_block(root, [1, 2], ("image-1", "image-2")).hex() == MEDIA


def test_the_largest_token_fits() -> None:
    assert block_hash(root_hash("m"), [2**32 - 1]).hex() == LARGEST_TOKEN
    assert second_block(root_hash("m"), [2**32 - 1]).hex() == LARGEST_TOKEN
    with pytest.raises(OverflowError):
        block_hash(root_hash("m"), [2**32])


def test_everything_that_decides_about_sharing_decides_about_the_hash() -> None:
    tokens = list(range(8))
    variants = [
        block_hashes(root, values, 8)[0]
        for root in (
            root_hash("m"),
            root_hash("n"),
            root_hash("m", "a"),
            root_hash("m", None, "a"),
            root_hash("m", "", ""),
        )
        for values in (tokens, tokens[::-1], [*tokens[:7], 8])
    ]
    variants += [block_hash(root_hash("m"), tokens, media) for media in (("x",), ("y",), ("x", "y"), ("xy",))]
    assert len(set(variants)) == len(variants)


@pytest.mark.parametrize(("count", "blocks"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_only_full_blocks_have_a_hash(count: int, blocks: int) -> None:
    assert len(block_hashes(root_hash("m"), list(range(count)), 4)) == blocks


def test_a_chain_may_be_continued_from_any_block() -> None:
    tokens = list(range(40))
    whole = block_hashes(root_hash("m"), tokens, 4)
    assert whole[:3] + block_hashes(whole[2], tokens[12:], 4) == whole


def test_another_process_computes_the_same() -> None:
    code = "from sagellm_protocol import *; print(block_hashes(root_hash('m'), range(16), 16)[0].hex())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {block_hashes(root_hash("m"), range(16), 16)[0].hex()}
