"""A peer that does not keep to the protocol: raw sockets, raw TLS, raw frames.

For: the tests of bad input. Must not know: what the node is to make of it. The one idea: every way in is a function of
bytes, and what comes back is either whole frames or the end of the connection.
"""

import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from logd.security import ca
from logd.security.identity import Identity
from logd.security.tls import TlsFiles
from wire.codec import decode, encode
from wire.frame import LENGTH, FrameReader
from wire.messages import Error, Hello, Message

# What a silent server is given before a test calls it silent: above all time limits that the tests configure.
SILENCE_SECONDS_MAX: Final = 10.0
FRAME_BYTES_MAX: Final = 64 << 20


class Raw:
    """A connected socket, plain or TLS, whose other end may do anything."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection(("127.0.0.1", port), SILENCE_SECONDS_MAX)
        try:
            self.socket = plain if context is None else context.wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        self._reader = FrameReader(FRAME_BYTES_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes; that the node has closed meanwhile is found out by reading."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            self.socket.sendall(data)

    def greet(self) -> None:
        """The honest beginning: afterwards the node takes whole frames of the full size."""
        self.send(encode(Hello((1,), "hostile"), 0))
        self.answer()

    def answer(self) -> Message:
        """The next message that comes."""
        for message in self.messages():
            return message
        raise AssertionError("the node closed the connection")

    def messages(self) -> Iterator[Message]:
        """What comes, until the node closes the connection."""
        while True:
            for body in self._reader.bodies():
                yield decode(body).message
                break
            else:
                try:
                    data = self.socket.recv(1 << 16)
                except (ConnectionError, ssl.SSLError):
                    return
                if not data:
                    return
                self._reader.feed(data)

    def last_words(self) -> list[str]:
        """The codes of the errors that come before the node closes the connection."""
        return [message.code for message in self.messages() if isinstance(message, Error)]


def frame(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def client_context(files: TlsFiles | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A client's context that checks nothing, with any certificate or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


def development_authority(tls_directory: Path) -> ca.Authority:
    """The CA that a development node made for itself."""
    certificate = x509.load_pem_x509_certificate((tls_directory / "ca.crt").read_bytes())
    key = serialization.load_pem_private_key((tls_directory / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return ca.Authority(certificate, key)


def issue(authority: ca.Authority, identity: Identity, directory: Path, age_days: int = 0) -> TlsFiles:
    """The files of a certificate that `authority` issued so many days ago."""
    key = ca.new_key()
    issued_at = dt.datetime.now(dt.UTC) - dt.timedelta(days=age_days)
    certificate = ca.issue(authority, identity, key.public_key(), issued_at)
    name = f"{identity.cluster_name}-{identity.name}-{age_days}"
    files = TlsFiles("", str(directory / f"{name}.crt"), str(directory / f"{name}.key"))
    ca.write_certificate(files.certificate, certificate)
    Path(files.key).write_bytes(ca.key_pem(key))
    return files
