"""The native door: accepts connections and makes sessions of those that prove who they are.

For: the node, which runs it. Must not know: what a request means. The one idea: a connection costs nothing but its
handshake until it has shown a certificate of this cluster; every way of failing to is one line in the log.
"""

import socket
import ssl
from collections.abc import Callable
from typing import Final

import trio

from logd.observability.logs import LimitedLogger
from logd.security.identity import Identity, IdentityError
from logd.server.door import Door
from logd.server.outbox import Corks
from logd.server.session import Budget, Gate, Session, SessionOptions
from wire.errors import ConnectionFailed, Misconfigured
from wire.stream import SecureStream, keep_alive

# Connections wait here while the loop is busy: the kernel's own default for a server.
BACKLOG: Final = 4096


class Listener:
    """Accepts clients.

    Arguments: `context_of_now`, returns the TLS context for the next handshake (a fresh one after every reload);
    `cluster_name`, whose certificates are let in; `connections_max`, beyond which new ones are closed at once.
    """

    def __init__(
        self,
        context_of_now: Callable[[], ssl.SSLContext],
        cluster_name: str,
        door: Door,
        options: SessionOptions,
        budget: Budget,
        gate: Gate,
        corks: Corks,
        log: LimitedLogger,
        after_requests: Callable[[], None],
        connections_max: int,
    ) -> None:
        self._context_of_now = context_of_now
        self._cluster_name = cluster_name
        self._door = door
        self._options = options
        self._budget = budget
        self._gate = gate
        self._corks = corks
        self._log = log
        self._after_requests = after_requests
        self._connections_max = connections_max
        self.connections = 0

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve until cancelled. No connection's failure ends another."""
        await trio.serve_listeners(self._serve_connection, listeners)

    async def _serve_connection(self, accepted: trio.SocketStream) -> None:
        peer = _peer_of(accepted)
        if self.connections >= self._connections_max:
            self._log.warning("connections_full", peer=peer, connections_max=self._connections_max)
            await trio.aclose_forcefully(accepted)
            return
        self.connections += 1
        try:
            await self._serve_socket(accepted, peer)
        except Exception as error:  # noqa: BLE001  # a defect in one session must not end the others; it is logged
            self._log.error("session_failed", peer=peer, exc_info=error)
        finally:
            self.connections -= 1
            # Nothing is there to close if the socket was handed on, which is the rule.
            accepted.socket.close()

    async def _serve_socket(self, accepted: trio.SocketStream, peer: str) -> None:
        context = self._context_of_now()
        # From here on the socket is the stream's, which reads and writes it by itself.
        connected = socket.socket(fileno=accepted.socket.detach())
        connected.settimeout(0)
        keep_alive(connected)
        stream = SecureStream(
            connected, context, server_side=True, write_stall_seconds=self._options.write_stall_seconds
        )
        try:
            await self._serve_stream(stream, peer)
        finally:
            stream.close_nowait()

    async def _serve_stream(self, stream: SecureStream, peer: str) -> None:
        problem = None
        with trio.move_on_after(self._options.handshake_seconds) as patience:
            try:
                await stream.handshake()
            except (ConnectionFailed, Misconfigured) as error:
                problem = str(error)
        if patience.cancelled_caught:
            problem = f"no TLS handshake within {self._options.handshake_seconds:g} s"
        if problem is not None:
            self._log.warning("handshake_failed", peer=peer, problem=problem)
            return
        try:
            identity = Identity.of_certificate(stream.peer_certificate(), self._cluster_name)
        except IdentityError as error:
            self._log.warning("identity_refused", peer=peer, problem=str(error))
            return
        await Session(
            stream,
            str(identity),
            self._door,
            self._options,
            self._budget,
            self._gate,
            self._corks,
            self._log,
            self._after_requests,
        ).run()


def _peer_of(stream: trio.SocketStream) -> str:
    try:
        host, port, *_ = stream.socket.getpeername()
    except OSError:
        return "gone"
    return f"{host}:{port}"
