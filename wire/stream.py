"""TLS 1.3 over TCP: prove who both ends are, then move bytes with as few steps as possible; and connect, for a client.

For: `wire.client`, and the server's sessions. Must not know: frames, messages, or when to connect again. The one idea:
the socket is ours and never blocks, and TLS is pumped through two memory buffers beside it. So sending is a plain
function call, which encrypts everything at once and hands it to the kernel at once: no task is switched, nothing can be
cancelled in the middle, and what the kernel does not take is sent on by one task. Receiving decrypts everything that
has arrived and returns it in one piece.

Measured in MB per second of processor time, both ends of a loopback connection in one process, median of five, Trio /
asyncio: in sends of 4 KiB, AnyIO's `TLSStream` 190 / 172, an `ssl.SSLSocket` that never blocks 557 / 543, this pump
563 / 593; in sends of 256 KiB the three lie between 782 and 1,000. A `TLSStream` switches tasks for every send and for
every record of 16 KiB received. An `SSLSocket` is as fast, but what it did not take must be offered again as the same
bytes before anything else may be sent, which is a queue of plaintext beside it.
"""

import os
import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn, cast

import anyio

from wire.errors import ConnectionFailed, ConnectionLost, Misconfigured
from wire.types import PORT_DEFAULT

# What one call to the kernel may bring; more does not make anything faster.
RECEIVE_BYTES_MAX: Final = 256 << 10
# A record that is still incomplete waits inside of TLS: its 16 KiB may come on top.
_PLAINTEXT_BYTES_MAX: Final = RECEIVE_BYTES_MAX + (32 << 10)
# How long an address may take to answer before the next one is tried: as the server bounds its handshakes.
CONNECT_SECONDS_MAX: Final = 10.0
# A peer that takes no byte for so long is gone: as the server's own bound.
WRITE_STALL_SECONDS: Final = 30.0
# The kernel asks a silent peer whether it is there: after 15 s, then each 5 s; three unanswered end the connection.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000))

_NODE_URI: Final = re.compile(r"spiffe://(?P<cluster>[^/]+)/node/(?P<name>[^/]+)")


class Address(NamedTuple):
    """Where a node listens.

    ```python
    assert wire.Address.parse("logs.example") == wire.Address("logs.example", 7421)
    assert str(wire.Address.parse("[::1]:7000")) == "[::1]:7000"
    ```
    """

    host: str
    port: int = PORT_DEFAULT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From `host`, `host:port`, `[::1]` or `[::1]:port`; raises Misconfigured for anything else.

        ```python
        assert wire.Address.parse("[::1]:7000") == wire.Address("::1", 7000)
        ```
        """
        match = re.fullmatch(
            r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s:\[\]/@]+))(?::(?P<port>[0-9]{1,5}))?", text
        )
        port = int(match["port"]) if match and match["port"] else PORT_DEFAULT
        if match is None or not 0 < port < 1 << 16:
            raise Misconfigured(f"{text!r} is no address; write host:port, or [IPv6 address]:port")
        return cls(match["six"] or match["host"], port)


@dataclass(frozen=True, slots=True)
class Tls:
    """The files that make a connection trusted, and whom to trust.

    Arguments: `ca`, `certificate`, `key`, the paths of PEM files (read at each connect, so that renewed ones serve
    from the next on); `server_name`, sent to the server as the name that is wanted (SNI), compared with nothing;
    `cluster_name`, the cluster that the server's certificate has to name (None: any that the CA vouches for).

    ```python
    tls = wire.Tls(ca=f"{directory}/ca.crt", certificate=f"{directory}/user.crt", key=f"{directory}/user.key")
    async with wire.Client(address, tls=tls) as client:
        print("connected to", client.node)
    ```
    """

    ca: str
    certificate: str
    key: str
    server_name: str | None = None
    cluster_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises Misconfigured, which names the one that is not in order.

        ```python
        assert tls.context().check_hostname is False
        ```
        """
        for path in (self.ca, self.certificate, self.key):
            if not os.access(path, os.R_OK):
                raise Misconfigured(f"{path}: {'cannot be read' if os.path.exists(path) else 'there is no such file'}")
        # Not `create_default_context`: that one obeys SSLKEYLOGFILE and believes the system's CAs.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Whom one speaks to is the URI in the certificate, not the name in the address.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        # What Python makes the default from 3.13 on: the same certificates are good under every version.
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            context.load_verify_locations(self.ca)
        except (ssl.SSLError, OSError) as error:
            raise Misconfigured(f"{self.ca}: no CA certificate in PEM form ({_reason(error)})") from error
        try:
            # The passphrase is given lest OpenSSL ask for one on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, OSError) as error:
            raise Misconfigured(
                f"{self.certificate} and {self.key}: no certificate with its key ({_reason(error)})"
            ) from error
        return context


class _Scratch(threading.local):
    """Where bytes pass through on their way in: used up before anything else of the thread can run.

    One for all streams of a thread, so that a thousand idle connections do not hold half a gibibyte.
    """

    def __init__(self) -> None:
        self.ciphertext = memoryview(bytearray(RECEIVE_BYTES_MAX))
        self.plaintext = memoryview(bytearray(_PLAINTEXT_BYTES_MAX))


_scratch = _Scratch()


class SecureStream:
    """One TLS connection. One task receives, one runs `run_sender`; `send_nowait` is for all of the same thread.

    After any error the stream is of no more use than to be closed.
    """

    def __init__(
        self,
        connected: socket.socket,
        context: ssl.SSLContext,
        server_name: str | None = None,
        *,
        server_side: bool = False,
        write_stall_seconds: float = WRITE_STALL_SECONDS,
    ) -> None:
        self._socket = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._peer = "client" if server_side else "server"
        self._write_stall_seconds = write_stall_seconds
        # Invariant: ciphertext that the kernel did not take yet, in order; while there is any, only `run_sender` sends.
        # Its bound is what the user of the stream lets be in flight.
        self._unsent: deque[memoryview] = deque()
        # Invariant: the sum of their sizes; a peer that does not read makes many small ones.
        self._unsent_bytes = 0
        # What a client says first may have arrived together with the end of its handshake.
        self._may_hold_plaintext = True
        self._sender_wanted = anyio.Event()
        self._progress = anyio.Event()
        self._broken: _Failure | None = None
        self._ended: _Failure | None = None

    # --- sending ---

    @property
    def unsent_bytes(self) -> int:
        """Ciphertext that the kernel did not take yet."""
        return self._unsent_bytes

    async def wait_sent(self, unsent_bytes_max: int) -> None:
        """Wait until at most so much is unsent, or the connection is broken, which `receive` tells."""
        while self.unsent_bytes > unsent_bytes_max and self._broken is None:
            # Several may wait: an event that nobody has set yet is everybody's.
            if self._progress.is_set():
                self._progress = anyio.Event()
            await self._progress.wait()

    def send_nowait(self, data: bytes) -> None:
        """Encrypt `data` and give it to the kernel, or keep what that does not take for `run_sender`.

        It never fails: that the connection is broken is learned by `receive` and `run_sender`, in one place.
        """
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self._break(f"TLS: {_reason(error)}", error)
            return
        self._transmit()

    def _transmit(self) -> None:
        """Move ciphertext from TLS to the kernel, without waiting."""
        if self._outgoing.pending:
            self._unsent.append(memoryview(self._outgoing.read()))
            self._unsent_bytes += len(self._unsent[-1])
            if len(self._unsent) > 1:
                return  # the sender is at it: order is kept
        self._push()

    def _push(self) -> None:
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent[0])
            except BlockingIOError:
                break
            except OSError as error:
                self._break(_reason(error), error)
                return
            self._unsent_bytes -= sent
            if sent < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][sent:]
            else:
                self._unsent.popleft()
        if self._unsent:
            self._sender_wanted.set()

    def _break(self, why: str, cause: Exception) -> None:
        self._unsent.clear()
        self._unsent_bytes = 0
        self._progress.set()
        self._broken = _Failure(why, cause)
        self._sender_wanted.set()

    async def run_sender(self) -> None:
        """Send on what the kernel did not take at once. Returns never; raises ConnectionLost."""
        while True:
            await self._sender_wanted.wait()
            if self._broken is not None:
                self._broken.throw()
            with anyio.move_on_after(self._write_stall_seconds):
                await anyio.wait_writable(self._socket)
                self._push()
                self._progress.set()
                if not self._unsent and self._broken is None:
                    self._sender_wanted = anyio.Event()
                continue
            raise ConnectionLost(f"the {self._peer} took no byte for {self._write_stall_seconds:g} s")

    # --- receiving ---

    async def receive(self) -> memoryview:
        """Wait for bytes, and return all that have arrived; the view is valid until the caller waits for anything.

        Raises ConnectionLost at the end of the stream, expected or not; the cause is an `ssl.SSLError` if it was one.
        """
        while True:
            if self._ended is not None:
                self._ended.throw()
            if self._may_hold_plaintext:
                self._may_hold_plaintext = False
            else:
                await self._receive_ciphertext()
            count = self._decrypt()
            # TLS itself may have something to say: the answer to a key update.
            self._transmit()
            if count:
                return _scratch.plaintext[:count]

    async def _receive_ciphertext(self) -> None:
        await anyio.wait_readable(self._socket)
        try:
            count = self._socket.recv_into(_scratch.ciphertext)
        except BlockingIOError:
            return
        except OSError as error:
            raise ConnectionLost(_reason(error)) from error
        if count:
            self._incoming.write(_scratch.ciphertext[:count])
        else:
            self._incoming.write_eof()

    def _decrypt(self) -> int:
        """Decrypt all that is there into the buffer; an end is kept for the next `receive`. Returns bytes."""
        total = 0
        try:
            while total < _PLAINTEXT_BYTES_MAX:
                # With a buffer to fill, `read` returns a number.
                count = cast("int", self._tls.read(_PLAINTEXT_BYTES_MAX - total, _scratch.plaintext[total:]))
                if not count:
                    self._ended = _Failure(f"the {self._peer} closed the connection")
                    break
                total += count
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._ended = _Failure(f"the {self._peer} closed the connection")
        except ssl.SSLError as error:
            self._ended = _Failure(f"TLS: {_reason(error)}", error)
        return total

    # --- beginning and end ---

    async def handshake(self) -> None:
        """Let both ends prove who they are. Raises ConnectionFailed, or Misconfigured for a wrong certificate.

        In TLS 1.3 a client is done before the server has looked at its certificate: that it was refused is learned
        from the first `receive`.
        """
        while not self._handshake_step():
            try:
                await self._receive_ciphertext()
            except ConnectionLost as error:
                raise ConnectionFailed(f"the connection ended during the handshake: {error}") from error

    def _handshake_step(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLCertVerificationError as error:
            raise Misconfigured(f"the {self._peer}'s certificate is not trusted: {error.verify_message}") from error
        except ssl.SSLEOFError as error:
            raise ConnectionFailed(f"the {self._peer} closed the connection during the handshake") from error
        except ssl.SSLError as error:
            raise Misconfigured(f"no TLS 1.3 handshake: {_reason(error)}") from error
        finally:
            # What it has to say goes out in any case: its next message, or the alert that says why it gives up.
            self._transmit()
        return True

    def peer_certificate(self) -> Mapping[str, object]:
        """What `ssl` tells of the certificate of the other end, after the handshake."""
        return self._tls.getpeercert() or {}

    def check_identity(self, cluster_name: str | None) -> str:
        """The name of the node at the other end, as its certificate says. Raises Misconfigured if it is no node's."""
        certificate = self._tls.getpeercert() or {}
        uris = [entry[1] for entry in certificate.get("subjectAltName", ()) if entry[0] == "URI"]
        match = _NODE_URI.fullmatch(str(uris[0])) if len(uris) == 1 else None
        if match is None:
            raise Misconfigured(f"the server's certificate names no node of logd, but {uris or 'nobody'}")
        if cluster_name is not None and match["cluster"] != cluster_name:
            raise Misconfigured(f"the server belongs to cluster {match['cluster']!r}, not to {cluster_name!r}")
        return match["name"]

    def close_nowait(self) -> None:
        """Say goodbye as far as the kernel takes it at once, and close. May be called twice; waits for nothing.

        Nobody may be inside of `receive` or `run_sender` then.
        """
        if self._socket.fileno() == -1:
            return
        try:
            if not self._unsent and self._broken is None:
                self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it wants to read the server's goodbye, for which nobody waits
        self._transmit()
        self._socket.close()


class _Failure:
    """Why a stream ended, kept until somebody can be told: each gets an exception of its own."""

    __slots__ = ("_cause", "_why")

    def __init__(self, why: str, cause: Exception | None = None) -> None:
        self._why = why
        self._cause = cause

    def throw(self) -> NoReturn:
        raise ConnectionLost(self._why) from self._cause


async def connect(address: Address, tls: Tls) -> tuple[SecureStream, str]:
    """Connect to a node; returns the stream and the node's name.

    Raises ConnectionFailed when it does not answer within `CONNECT_SECONDS_MAX`, and Misconfigured when the files or
    the certificates are not in order. Nothing is left open then.
    """
    context = tls.context()
    with anyio.move_on_after(CONNECT_SECONDS_MAX):
        stream = SecureStream(
            await _connect_socket(address), context, tls.server_name, write_stall_seconds=WRITE_STALL_SECONDS
        )
        try:
            await stream.handshake()
            return stream, stream.check_identity(tls.cluster_name)
        except (ConnectionFailed, Misconfigured) as error:
            stream.close_nowait()
            raise type(error)(f"{address}: {error}") from error.__cause__
        except BaseException:
            stream.close_nowait()
            raise
    raise ConnectionFailed(f"{address}: no answer within {CONNECT_SECONDS_MAX:.0f} s")


async def _connect_socket(address: Address) -> socket.socket:
    try:
        found = await anyio.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(f"{address}: the name is not known ({_reason(error)})") from error
    failure: OSError = OSError("no address")
    for family, kind, protocol, _, place in found:
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(0)
            await _finish_connecting(opened, place)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(opened)
        except OSError as error:
            opened.close()
            failure = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise ConnectionFailed(f"{address}: {_reason(failure)}") from failure


def keep_alive(connected: socket.socket) -> None:
    """Have the kernel end a connection whose peer vanished without a word."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        if hasattr(socket, option):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def _finish_connecting(opened: socket.socket, place: tuple[object, ...]) -> None:
    try:
        opened.connect(place)
    except BlockingIOError:
        await anyio.wait_writable(opened)
        number = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
