"""What the tests of this room share: certificates of every sort, and handshakes over memory."""

import dataclasses
import datetime as dt
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography import x509

from logd.security import ca
from logd.security.identity import Identity, Kind
from logd.security.tls import TlsFiles

CLUSTER = "orchard"
NOW = dt.datetime.now(dt.UTC)
LONG_AGO = NOW - dt.timedelta(days=800)
LONG_FROM_NOW = NOW + dt.timedelta(days=800)

# What `getpeercert()` gives.
Certificate = Mapping[str, object]


def node(name: str = "node-1", cluster_name: str = CLUSTER) -> Identity:
    return Identity(cluster_name, Kind.NODE, name)


def user(name: str = "ada", cluster_name: str = CLUSTER) -> Identity:
    return Identity(cluster_name, Kind.USER, name)


@dataclasses.dataclass(frozen=True)
class Issuer:
    """A CA that leaves its files in a directory of its own."""

    directory: Path
    authority: ca.Authority

    @classmethod
    def create(cls, directory: Path, now: dt.datetime = NOW, cluster_name: str = CLUSTER) -> "Issuer":
        directory.mkdir(parents=True)
        authority = ca.create_authority(cluster_name, now)
        ca.write_certificate(str(directory / "ca.crt"), authority.certificate)
        return cls(directory, authority)

    def files(self, identity: Identity, now: dt.datetime = NOW, hosts: Sequence[str] = ()) -> TlsFiles:
        key = ca.new_key()
        name = f"{identity.kind}-{identity.name}-{now:%Y}"
        return self.write(name, ca.issue(self.authority, identity, key.public_key(), now, hosts), ca.key_pem(key))

    def write(self, name: str, certificate: x509.Certificate, key: bytes) -> TlsFiles:
        files = TlsFiles(*(str(self.directory / part) for part in ("ca.crt", f"{name}.crt", f"{name}.key")))
        ca.write_certificate(files.certificate, certificate)
        Path(files.key).write_bytes(key)
        return files


def bare_client(files: TlsFiles | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return the context of a client that checks nothing, as an attacker's would be."""
    return _bare(ssl.PROTOCOL_TLS_CLIENT, files, version)


def bare_server(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a server that checks nothing."""
    return _bare(ssl.PROTOCOL_TLS_SERVER, files, ssl.TLSVersion.TLSv1_3)


def _bare(protocol: int, files: TlsFiles | None, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


@dataclasses.dataclass
class Conversation:
    """Both ends of a connection over memory."""

    client: ssl.SSLObject
    server: ssl.SSLObject


def converse(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Conversation:
    """Shake hands and exchange a byte each way; raise what the first side to object raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = Conversation(
        client.wrap_bio(to_client, to_server, session=session), server.wrap_bio(to_server, to_client, server_side=True)
    )
    done: set[ssl.SSLObject] = set()
    for _ in range(6):
        for end in (ends.client, ends.server):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert done == {ends.client, ends.server}
    ends.client.write(b"?")
    assert ends.server.read(1) == b"?"
    ends.server.write(b"!")
    assert ends.client.read(1) == b"!"
    return ends


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[Certificate, Certificate]:
    """Return the server's certificate as the client saw it, and the client's as the server saw it."""
    ends = converse(server, client)
    return ends.client.getpeercert() or {}, ends.server.getpeercert() or {}
