"""ZeroMQ's two ends: the router that a core serves, and the dealer that a front holds in its event loop.

Knows how messages travel; nothing of processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Hashable, Sequence

import zmq

from .messages import CoreMessage, FrontMessage, decode_core, decode_front, encode


def _unbounded(socket: zmq.Socket[bytes]) -> None:
    # Who sends bounds what is in flight; a full queue would drop messages or block a loop.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)


class RouterChannel:
    """The core's end, for any number of fronts.

    Args:
        context: Of the process.
        address: To bind.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.ROUTER)
        _unbounded(self._socket)
        self._socket.bind(address)
        self._fronts: set[bytes] = set()
        # A socket belongs to one thread; a pipe to all of them.
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._woken, zmq.POLLIN)

    def receive(self, timeout_s: float) -> Sequence[tuple[Hashable, FrontMessage]]:
        """All that has arrived."""
        arrived: list[tuple[Hashable, FrontMessage]] = []
        ready = dict(self._poller.poll(int(timeout_s * 1000)))
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._socket not in ready:
            return arrived
        while True:
            try:
                front, body = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return arrived
            self._fronts.add(front)
            arrived.append((front, decode_front(body)))

    def wake(self) -> None:
        """Write into the pipe that is waited for beside the socket."""
        with contextlib.suppress(BlockingIOError):  # full of wakings
            os.write(self._waker, b"!")

    def send(self, front: Hashable, message: CoreMessage) -> None:
        """Send to one front; to one that is gone, nothing happens."""
        assert isinstance(front, bytes)
        self._socket.send_multipart((front, encode(message)))

    def tell_all(self, message: CoreMessage, timeout_s: float) -> None:
        """Send to every front; if none was heard of yet, wait up to ``timeout_s`` for one."""
        if not self._fronts:
            self.receive(timeout_s)
        for front in self._fronts:
            self.send(front, message)

    def close(self, linger_s: float) -> None:
        """Close, giving what was sent last ``linger_s`` to leave."""
        self._socket.close(int(linger_s * 1000))
        os.close(self._woken)
        os.close(self._waker)


class Dealer:
    """The front's end, read by an event loop without a thread or a task.

    Args:
        address: To connect to; it need not be bound yet.
        deliver: Takes each message, in the loop.
    """

    def __init__(self, address: str, deliver: Callable[[CoreMessage], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        _unbounded(self._socket)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.connect(address)
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self.drain)

    def send(self, message: FrontMessage) -> None:
        """Send to the core."""
        self._socket.send(encode(message), zmq.NOBLOCK)
        # The descriptor tells of changes only, and sending may have consumed one that told of an arrival.
        self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Deliver all that has arrived."""
        while not self._socket.closed:
            try:
                body = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._deliver(decode_core(body))

    def close(self) -> None:
        """Close at once."""
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            self._socket.close(0)
            self._context.term()
