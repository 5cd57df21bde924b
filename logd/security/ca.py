"""The cluster's own certificate authority: makes it, issues from it, and keeps a developer's certificates in order.

Its one idea: whatever is wrong with a certificate, another one is issued for the *same* key, so that one atomic rename
replaces it and nobody who reads meanwhile sees a pair that does not match. It is the only module that imports
`cryptography`, and is itself imported only where certificates are made. It must not know how connections use them.
"""

import contextlib
import dataclasses
import datetime as dt
import fcntl
import ipaddress
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from logd.config import is_name
from logd.security.identity import Identity, Kind
from logd.security.tls import SecurityError, TlsFiles

# A CA is replaced with care and seldom; a leaf often enough that its replacement is practised.
AUTHORITY_LIFETIME: Final = dt.timedelta(days=3650)
LEAF_LIFETIME: Final = dt.timedelta(days=365)
# A month leaves time to notice and to act.
RENEWAL_BEFORE_EXPIRY: Final = dt.timedelta(days=30)
# Certificates are valid from a little before they are made: clocks of one cluster differ by less.
BACKDATED: Final = dt.timedelta(hours=1)
# Names and addresses of one node; a certificate must stay small, it travels in every handshake.
HOSTS_MAX: Final = 64
# Making everything takes some 20 ms; who waits this long waits for a process that hangs.
LOCK_SECONDS: Final = 10.0
_LOCK_RETRY_SECONDS = 0.02
# Larger files are none of ours.
_FILE_BYTES_MAX = 1 << 20

# The development user: what `logctl` is beside a node started with `--dev`.
DEVELOPMENT_USER: Final = "developer"


@dataclasses.dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate, and the key with which it issues."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclasses.dataclass(frozen=True, slots=True)
class DevelopmentCertificates:
    """Where a development node's certificates are, and which of the files had to be written this time."""

    ca_key: str
    node: TlsFiles
    user: TlsFiles
    # Paths, in the order of writing; empty when all was in order.
    written: tuple[str, ...]


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a fresh ECDSA P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def create_authority(cluster_name: str, now: dt.datetime, key: ec.EllipticCurvePrivateKey | None = None) -> Authority:
    """Return a CA for the cluster, valid for `AUTHORITY_LIFETIME` from `now`, with `key` or a fresh one.

    It issues leaves only, and carries the cluster's URI, so that nobody mistakes one cluster's CA for another's.
    Raises `ValueError` if `cluster_name` is no name.
    """
    if not is_name(cluster_name):
        raise ValueError(f"{cluster_name!r} is no name of a cluster")
    key = key or new_key()
    # An X.509 common name has at most 64 characters, and a cluster's name may have 63.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "logd"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "certificate authority"),
            x509.NameAttribute(NameOID.COMMON_NAME, cluster_name),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now, now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(x509.SubjectAlternativeName([_authority_uri(cluster_name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(
    authority: Authority,
    identity: Identity,
    public_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Return a certificate for `identity`, valid for `LEAF_LIFETIME` from `now`, at most as long as the CA itself.

    A node's serves for accepting and connecting, and names `hosts` (DNS names, IP addresses; at most `HOSTS_MAX`); a
    user's serves for connecting alone and names none. Raises `SecurityError` for a host that no certificate can name,
    and if the CA itself has expired.
    """
    if now >= authority.certificate.not_valid_after_utc:
        raise SecurityError(f"the CA expired on {authority.certificate.not_valid_after_utc:%Y-%m-%d}; make a new one")
    if len(hosts) > HOSTS_MAX:
        raise SecurityError(f"{len(hosts)} hosts for one certificate; at most {HOSTS_MAX} are allowed")
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    if identity.kind is Kind.NODE:
        purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        names += [_host_name(host) for host in hosts]
    issuer = authority.certificate
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
    authority_identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    expiry = min(now + LEAF_LIFETIME, issuer.not_valid_after_utc)
    return (
        _builder(subject, issuer.subject, public_key, now, expiry)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_identifier), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return the certificate as it stands in a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key as it stands in a file: PKCS #8, without a passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_certificate(path: str, certificate: x509.Certificate) -> None:
    """Write the certificate whole or not at all, readable by everybody. Raises `SecurityError`; the old file stays."""
    _write_atomically(path, certificate_pem(certificate), 0o644)


def write_key(path: str, key: ec.EllipticCurvePrivateKey) -> None:
    """Write the key whole or not at all, of mode 0600 from the start. Raises `SecurityError`; the old file stays."""
    _write_atomically(path, key_pem(key), 0o600)


def ensure_development_certificates(
    directory: str,
    cluster_name: str,
    node_name: str,
    hosts: Sequence[str],
    *,
    now: dt.datetime | None = None,
    lock_seconds: float = LOCK_SECONDS,
) -> DevelopmentCertificates:
    """Make sure that `directory` holds a CA and certificates of one node and of the user `developer`, all in order.

    Files: `ca.crt`, `ca.key`, `node.crt`, `node.key`, `user.crt`, `user.key`. What is in order stays as it is; what is
    missing, torn, of another name or CA, without one of `hosts`, expired or `RENEWAL_BEFORE_EXPIRY` from it, is made
    anew, certificates for the key that is there. Of several starters at once one makes them and the others wait, at
    most `lock_seconds`. The node's certificate names the local host besides `hosts`, of which `0.0.0.0` and `::` name
    nothing.

    Raises `SecurityError` if the directory cannot be written, if it belongs to another cluster, or if something must be
    issued and the CA's key is gone; each file is then either the old one or the new one.
    """
    now = now or dt.datetime.now(dt.UTC)
    keeper = _Keeper(directory, cluster_name, now)
    try:
        # The keys in it are nobody else's business, and neither are their names.
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with _locked(directory, lock_seconds):
            keeper.remove_leftovers()
            keeper.ensure_authority()
            node = keeper.ensure_leaf("node", Identity(cluster_name, Kind.NODE, node_name), _with_local_host(hosts))
            user = keeper.ensure_leaf("user", Identity(cluster_name, Kind.USER, DEVELOPMENT_USER), ())
    except OSError as error:
        where = error.filename or directory
        raise SecurityError(f"{where}: {error.strerror}; make it accessible, or choose another directory") from error
    return DevelopmentCertificates(keeper.path("ca.key"), node, user, tuple(keeper.written))


class _Keeper:
    """One look at a directory of development certificates, with its lock held."""

    def __init__(self, directory: str, cluster_name: str, now: dt.datetime) -> None:
        self.written: list[str] = []
        self._directory = directory
        self._cluster_name = cluster_name
        self._now = now
        # Set by `ensure_authority`.
        self._certificate: x509.Certificate
        self._key: ec.EllipticCurvePrivateKey | None

    def path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def remove_leftovers(self) -> None:
        """Remove what a starter that was killed had not renamed yet; nobody else writes while the lock is held."""
        for name in os.listdir(self._directory):
            if name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX):
                os.unlink(self.path(name))

    def ensure_authority(self) -> None:
        certificate = _read_certificate(self.path("ca.crt"))
        key = _read_key(self.path("ca.key"))
        if certificate is not None and _uris(certificate) != [_authority_uri(self._cluster_name).value]:
            raise SecurityError(
                f"{self.path('ca.crt')}: not the CA of cluster {self._cluster_name}; "
                f"start with the former cluster name, or delete {self._directory} to begin anew"
            )
        if certificate is None or self._expires_soon(certificate):
            # The same key keeps what was issued valid. It comes first: a certificate never stands without its key.
            if key is None:
                key = new_key()
                self._write_key("ca.key", key)
            certificate = create_authority(self._cluster_name, self._now, key).certificate
            self._write_certificate("ca.crt", certificate)
        self._certificate, self._key = certificate, key

    def ensure_leaf(self, name: str, identity: Identity, hosts: Sequence[str]) -> TlsFiles:
        files = TlsFiles(self.path("ca.crt"), self.path(f"{name}.crt"), self.path(f"{name}.key"))
        certificate, key = _read_certificate(files.certificate), _read_key(files.key)
        if certificate is None or key is None or not self._in_order(certificate, key, identity, hosts):
            authority = self._authority()
            if key is None:
                key = new_key()
                self._write_key(f"{name}.key", key)
            self._write_certificate(f"{name}.crt", issue(authority, identity, key.public_key(), self._now, hosts))
        return files

    def _authority(self) -> Authority:
        """Return the CA as one that can issue; its key is looked for only when something is to be issued."""
        if self._key is None or self._key.public_key() != self._certificate.public_key():
            raise SecurityError(
                f"{self.path('ca.key')}: missing, or not the key of ca.crt, and a certificate is to be issued; "
                f"restore it, or delete {self._directory} to begin anew"
            )
        return Authority(self._certificate, self._key)

    def _in_order(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        identity: Identity,
        hosts: Sequence[str],
    ) -> bool:
        return (
            not self._expires_soon(certificate)
            and certificate.public_key() == key.public_key()
            and _issued_by(certificate, self._certificate)
            and _uris(certificate) == [str(identity)]
            and {_host_name(host) for host in hosts} <= set(_alternative_names(certificate))
        )

    def _expires_soon(self, certificate: x509.Certificate) -> bool:
        # A clock that was set back makes a certificate one of the future; another one is cheap.
        return (
            self._now + RENEWAL_BEFORE_EXPIRY >= certificate.not_valid_after_utc
            or self._now < certificate.not_valid_before_utc
        )

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> None:
        write_key(self.path(name), key)
        self.written.append(self.path(name))

    def _write_certificate(self, name: str, certificate: x509.Certificate) -> None:
        write_certificate(self.path(name), certificate)
        self.written.append(self.path(name))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    expiry: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # Certificates count whole seconds.
        .not_valid_before((now - BACKDATED).replace(microsecond=0))
        .not_valid_after(expiry.replace(microsecond=0))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_uri(cluster_name: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(f"spiffe://{cluster_name}")


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        if not host or len(host) > 253:
            raise ValueError
        return x509.DNSName(host)
    except ValueError:
        raise SecurityError(f"{host!r}: neither a DNS name in ASCII nor an IP address; correct the host") from None


def _with_local_host(hosts: Sequence[str]) -> list[str]:
    # Nobody connects to the unspecified address: it stands for all of a machine's.
    named = [host for host in hosts if host not in ("", "0.0.0.0", "::")]  # noqa: S104 - compared, not bound
    return list(dict.fromkeys([*named, "localhost", "127.0.0.1", "::1"]))


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError):
        return []


def _uris(certificate: x509.Certificate) -> list[str]:
    return [name.value for name in _alternative_names(certificate) if isinstance(name, x509.UniformResourceIdentifier)]


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _read_certificate(path: str) -> x509.Certificate | None:
    """Return the certificate, or None if there is no file or it holds none."""
    content = _read(path)
    try:
        return None if content is None else x509.load_pem_x509_certificate(content)
    except ValueError:
        return None


def _read_key(path: str) -> ec.EllipticCurvePrivateKey | None:
    """Return the key, or None if there is no file or it holds none of our kind; see to it that nobody else reads it."""
    content = _read(path)
    if content is None:
        return None
    if os.stat(path).st_mode & 0o077:
        os.chmod(path, 0o600)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_BYTES_MAX)
    except FileNotFoundError:
        return None


_TEMPORARY_SUFFIX = ".tmp"


def _write_atomically(path: str, content: bytes, mode: int) -> None:
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}")
    try:
        try:
            _write_synced(temporary, content, mode)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        # The rename itself must survive a crash, lest a certificate outlive its key.
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SecurityError(f"{path}: cannot be written: {error.strerror}; free space or make it writable") from error


def _write_synced(path: str, content: bytes, mode: int) -> None:
    # Created with its final mode, so that a key is never readable, not even empty; and not through somebody's link.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        # The umask took bits away that a certificate is meant to have.
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(directory: str, seconds: float) -> Iterator[None]:
    path = os.path.join(directory, ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise SecurityError(
                        f"{path}: another process has held it for {seconds:g} s; see what it is doing, then start again"
                    ) from None
                time.sleep(_LOCK_RETRY_SECONDS)
        yield
    finally:
        # Closing releases the lock.
        os.close(descriptor)
