"""CPU that an HTTP client costs a request and a streamed chunk: why the remote engine speaks aiohttp.

Compares httpx, httpx over aiohttp's transport, aiohttp, and our own ``RemoteEngine``, each reading streams of lines
from one server in a process of its own. Counts this process's CPU time alone, so a busy machine changes little. Needs
``httpx`` and ``httpx-aiohttp``::

    python benchmarks/http_clients.py --requests 400 --chunks 64
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from sagellm_control_plane.launchers.subprocess import SubprocessLauncher
from sagellm_protocol import EngineSpec, Request, SamplingParams
from sagellm_protocol.remote import PREFIX, GenerateCall

One = Callable[[int, int], Awaitable[None]]


def ask(number: int, tokens: int) -> Request:
    """A request whose answer has that many tokens."""
    return Request(
        request_id=f"r{number}-{tokens}-{time.monotonic_ns()}",
        model="m",
        prompt="hello",
        sampling=SamplingParams(max_tokens=tokens, ignore_eos=True),
    )


async def cost(one: One, requests: int, tokens: int, at_once: int = 8) -> float:
    """CPU seconds of this process a request."""
    await asyncio.gather(*(one(i, tokens) for i in range(at_once)))
    began = time.process_time()
    for start in range(0, requests, at_once):
        await asyncio.gather(*(one(start + i, tokens) for i in range(at_once)))
    return (time.process_time() - began) / requests


async def main(requests: int, chunks: int) -> None:
    """Print a table."""
    handle = await SubprocessLauncher().start(EngineSpec(engine="mock", model="m"), "bench")
    engine, url = handle.engine, f"{handle.url}{PREFIX}/generate"
    headers = engine._headers

    async def with_httpx(client: httpx.AsyncClient, number: int, tokens: int) -> None:
        body = GenerateCall(request=ask(number, tokens)).to_wire()
        async with client.stream("POST", url, content=body, headers=headers) as response:
            async for _ in response.aiter_lines():
                pass

    async with httpx.AsyncClient(timeout=60) as plain, aiohttp.ClientSession() as session:
        carried = httpx.AsyncClient(timeout=60, transport=AiohttpTransport(client=aiohttp.ClientSession))

        async def with_aiohttp(number: int, tokens: int) -> None:
            body = GenerateCall(request=ask(number, tokens)).to_wire()
            async with session.post(url, data=body, headers=headers) as response:
                async for _ in response.content:
                    pass

        async def with_ours(number: int, tokens: int) -> None:
            async for _ in engine.generate(ask(number, tokens)):
                pass

        print(f"{'client':24} {'us a request':>14} {'us a chunk':>12}")
        for name, one in (
            ("httpx", lambda n, t: with_httpx(plain, n, t)),
            ("httpx over aiohttp", lambda n, t: with_httpx(carried, n, t)),
            ("aiohttp", with_aiohttp),
            ("RemoteEngine (parsed)", with_ours),
        ):
            short = await cost(one, requests, 1)
            long = await cost(one, requests, 1 + chunks)
            print(f"{name:24} {short * 1e6:14.0f} {(long - short) / chunks * 1e6:12.1f}")
        await carried.aclose()
    await handle.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--chunks", type=int, default=64)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.requests, arguments.chunks))
