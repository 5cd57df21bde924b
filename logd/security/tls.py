"""TLS as logd speaks it: version 1.3 alone, a certificate on both sides, one CA that both believe.

Its one idea: a context is made whole, from the three files, each time they are read, and proves itself in a handshake
with itself over memory before anybody gets it. So a wrong, foreign or expired file is found where it is loaded, in one
line that names it, and a running node that reloads keeps its old context. It must not know who may do what, nor import
`cryptography`, which is slow to load and not needed here.
"""

import dataclasses
import os
import ssl
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from logd.config import DEFAULT_ORIGIN, Config
from logd.security.identity import Identity, IdentityError, Kind

# Some dozens of certificates; a file beyond this is none of the three.
FILE_BYTES_MAX: Final = 1 << 20
# A handshake over memory takes two steps by each side.
_HANDSHAKE_STEPS_MAX = 10


# Which of `TlsFiles`; "" is none of them.
Part = Literal["", "ca", "certificate", "key"]


class SecurityError(Exception):
    """The files that make this process trusted are not in order; the text names the file and says what to do.

    `part` is which of the three is at fault, where it is one of them. Nothing was changed: whoever was loading goes on
    with what it had, or does not start.
    """

    def __init__(self, text: str, part: Part = "") -> None:
        super().__init__(text)
        self.part = part


class NodeFilesError(SecurityError):
    """A node's files, or the names in its certificate, do not fit its settings; the node does not start.

    `problems` holds a line for each thing wrong, with the key of the setting and where that was set.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """The paths of the three PEM files behind every connection."""

    # The CA that peers' certificates must come from; two while it is replaced.
    ca: str
    # This process's certificate, followed by intermediate ones if it has any.
    certificate: str
    # The certificate's private key, without a passphrase.
    key: str


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a fresh context for accepting: TLS 1.3, certificates required of clients, no session resumption.

    Raises `SecurityError` that names the file if one is missing or unreadable, if certificate and key do not belong
    together, if the certificate is expired, not yet valid, not from the CA, or not good for a server.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    # A resumed session is not verified again: it would outlive the certificate and its revocation.
    context.num_tickets = 0
    _prove(ssl.PROTOCOL_TLS_SERVER, files)
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a fresh context for connecting: TLS 1.3, a certificate from the CA required of the server.

    The host name is not compared: whom one speaks to is the URI in the certificate, which the caller checks after the
    handshake with `Identity.of_certificate`. Raises `SecurityError` as `server_context` does, for a client.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    _prove(ssl.PROTOCOL_TLS_CLIENT, files)
    return context


def own_certificate(files: TlsFiles) -> Mapping[str, object]:
    """Return the certificate of a server's files as a peer sees it, in the form of `getpeercert()`.

    It tells a node at its start whom it will be taken for. Raises `SecurityError` as `server_context` does.
    """
    _context(ssl.PROTOCOL_TLS_SERVER, files)
    return _prove(ssl.PROTOCOL_TLS_SERVER, files)


@dataclasses.dataclass(frozen=True, slots=True)
class NodeTls:
    """What a node shows to whoever connects, and how it accepts them."""

    context: ssl.SSLContext
    # In the form of `getpeercert()`, as a peer sees it.
    certificate: Mapping[str, object]


def node_tls(config: Config) -> NodeTls:
    """Load the files that a node's settings name, and compare the names in its certificate with the settings.

    A start and `logd --check-config` both come here, so that the one cannot fail where the other said `ok`. Raises
    `NodeFilesError` with everything that can be told at once: each file that is not in order by itself, or else what
    is wrong between them.
    """
    files = TlsFiles(config.tls.ca, config.tls.certificate, config.tls.key)
    alone = [*_problems_alone(files)]
    if alone:
        raise NodeFilesError([_problem_of_file(error, config) for error in alone])
    try:
        context = server_context(files)
        certificate = own_certificate(files)
    except SecurityError as error:
        raise NodeFilesError([_problem_of_file(error, config)]) from error
    problems = _problems_of_names(certificate, config)
    if problems:
        raise NodeFilesError(problems)
    return NodeTls(context, certificate)


def _problems_alone(files: TlsFiles) -> Iterator[SecurityError]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for check in (lambda: _load_ca(context, files.ca), lambda: _read_certificate(files), lambda: _read_key(files)):
        try:
            check()
        except SecurityError as error:
            yield error


def _problem_of_file(error: SecurityError, config: Config) -> str:
    return f"tls.{error.part}: {error} ({_origin(config, f'tls.{error.part}')})"


def _problems_of_names(certificate: Mapping[str, object], config: Config) -> list[str]:
    place = f"{config.tls.certificate}: "
    where = f"({_origin(config, 'tls.certificate')})"
    try:
        identity = Identity.of_uri_in(certificate)
    except IdentityError as error:
        return [f"tls.certificate: {place}{error}; issue one for this node {where}"]
    if identity.kind is not Kind.NODE:
        return [f"tls.certificate: {place}it names the {identity.kind} {identity.name}, not a node {where}"]
    named = (
        ("node.cluster_name", "cluster", identity.cluster_name, config.node.cluster_name),
        ("node.name", "node", identity.name, config.node.name),
    )
    return [
        f"{key}: {wanted} ({_origin(config, key)}), but the certificate names the {what} {found}: "
        f"{config.tls.certificate} {where}; correct the one or issue the other"
        for key, what, found, wanted in named
        if found != wanted
    ]


def _origin(config: Config, key: str) -> str:
    return "the default" if config.origins[key] == DEFAULT_ORIGIN else f"from {config.origins[key]}"


def expiry_seconds(certificate: Mapping[str, object]) -> float:
    """Return when a certificate (in the form of `getpeercert()`) expires, in seconds since 1970 UTC."""
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    # Not `create_default_context`: that one obeys SSLKEYLOGFILE and believes the system's CAs.
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # What Python makes the default from 3.13 on: the same certificates are good under every version.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    _load_ca(context, files.ca)
    _load_chain(context, files)
    return context


def _load_ca(context: ssl.SSLContext, path: str) -> None:
    try:
        context.load_verify_locations(cadata=_read(path, "CERTIFICATE", "ca"))
    except ssl.SSLError as error:
        raise SecurityError(
            f"{path}: not a PEM certificate ({_reason(error)}); put the CA's certificate there", "ca"
        ) from error
    authorities = context.get_ca_certs()
    if not authorities:
        raise SecurityError(
            f"{path}: not the certificate of a CA; put the certificate there that issued the others", "ca"
        )
    if all(expiry_seconds(authority) <= time.time() for authority in authorities):
        raise SecurityError(
            f"{path}: the CA expired on {authorities[0]['notAfter']}; make a new one and issue anew", "ca"
        )


def _load_chain(context: ssl.SSLContext, files: TlsFiles) -> None:
    certificate = _read_certificate(files)
    _read_key(files)
    try:
        # The passphrase is given lest OpenSSL ask for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except OSError as error:
        # An `ssl.SSLError` is an `OSError`; any other means that a file changed since it was read above.
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise SecurityError(
                f"{files.key}: not the key of {files.certificate}; put the two there that were issued together", "key"
            ) from error
        part: Part = "key" if _is_certificate(certificate) else "certificate"
        raise SecurityError(
            f"{getattr(files, part)}: cannot be used ({_reason(error)}); issue certificate and key anew", part
        ) from error


def _read_certificate(files: TlsFiles) -> str:
    return _read(files.certificate, "CERTIFICATE", "certificate")


def _read_key(files: TlsFiles) -> str:
    key = _read(files.key, "PRIVATE KEY", "key")
    if "ENCRYPTED" in key:
        raise SecurityError(
            f"{files.key}: the key has a passphrase; store it without one, in a file of mode 0600", "key"
        )
    return key


def _is_certificate(pem: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem)
    except ssl.SSLError:
        return False
    return True


def _read(path: str, label: str, part: Part) -> str:
    """Return the text of a PEM file; never wait for a pipe's other end, never take more than the bound."""
    try:
        content = _read_regular_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SecurityError(
            f"{path}: cannot be read: {reason}; correct the path or the file's permissions", part
        ) from error
    if len(content) > FILE_BYTES_MAX:
        raise SecurityError(f"{path}: longer than {FILE_BYTES_MAX} bytes; that is no PEM file of ours", part)
    # PEM is ASCII; what is not, is found by the marker or by OpenSSL.
    text = content.decode("ascii", "replace")
    if f"{label}-----" not in text or "-----BEGIN " not in text:
        what = "certificate" if label == "CERTIFICATE" else "private key"
        raise SecurityError(f"{path}: holds no {what} in PEM form; put one there, or correct the path", part)
    return text


def _read_regular_file(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        return file.read(FILE_BYTES_MAX + 1)


# What OpenSSL's verification says, by its code, as something to do. The codes are part of OpenSSL's interface.
_VERIFICATION: Final = {
    9: "not valid yet; correct this machine's clock, or wait",
    10: "expired; issue a new one",
    18: "signed by itself; issue one from the CA {ca}",
    19: "not issued by the CA {ca}; issue one from it, or correct the path",
    20: "not issued by the CA {ca}; issue one from it, or correct the path",
    21: "not issued by the CA {ca}; issue one from it, or correct the path",
    7: "not issued by the CA {ca}, but by another of its name; issue one from it, or correct the path",
    26: "not made for a {role}; issue one with that purpose",
}


def _prove(protocol: int, files: TlsFiles) -> Mapping[str, object]:
    """Let the files' certificate be verified by its own CA, as a peer will; return it as the peer sees it."""
    holder, verifier = _context(protocol, files), _verifier(protocol, files)
    holder.verify_mode = ssl.CERT_NONE
    server_side = protocol == ssl.PROTOCOL_TLS_SERVER
    to_holder, to_verifier = ssl.MemoryBIO(), ssl.MemoryBIO()
    held = holder.wrap_bio(to_holder, to_verifier, server_side=server_side)
    verified = verifier.wrap_bio(to_verifier, to_holder, server_side=not server_side)
    try:
        for _ in range(_HANDSHAKE_STEPS_MAX):
            # Both take every step: the one that is done first has nothing more to do in it.
            if all([_step(held), _step(verified)]):
                return verified.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        role = "server" if server_side else "client"
        advice = _VERIFICATION.get(error.verify_code, f"refused by OpenSSL ({error.verify_message}); issue a new one")
        raise SecurityError(f"{files.certificate}: {advice.format(ca=files.ca, role=role)}", "certificate") from error
    except ssl.SSLError as error:
        raise SecurityError(
            f"{files.certificate}: no handshake with it ({_reason(error)}); issue a new one", "certificate"
        ) from error
    raise SecurityError(f"{files.certificate}: no handshake with it; issue a new one", "certificate")


def _verifier(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    if protocol == ssl.PROTOCOL_TLS_CLIENT:
        # A server needs a certificate to speak at all; the client in question does not look at it.
        return _context(ssl.PROTOCOL_TLS_SERVER, files)
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def _step(connection: ssl.SSLObject) -> bool:
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _reason(error: OSError) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return str(reason or error).replace("_", " ").lower()
