"""Who gets through a handshake, and what is said about files that are not in order."""

import datetime as dt
import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from logd.config import Config, load
from logd.security import ca
from logd.security.identity import Identity, IdentityError
from logd.security.tls import (
    NodeFilesError,
    SecurityError,
    TlsFiles,
    client_context,
    expiry_seconds,
    node_tls,
    own_certificate,
    server_context,
)
from tests.security.certificates import (
    CLUSTER,
    LONG_AGO,
    LONG_FROM_NOW,
    NOW,
    Issuer,
    bare_client,
    bare_server,
    converse,
    handshake,
    node,
    user,
)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    # Old enough to have issued what has expired since.
    return Issuer.create(tmp_path_factory.mktemp("tls") / "ours", LONG_AGO)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """Return a CA of the same name as ours that is not ours."""
    return Issuer.create(tmp_path_factory.mktemp("tls") / "foreign", LONG_AGO)


@pytest.fixture(scope="module")
def server_files(issuer: Issuer) -> TlsFiles:
    return issuer.files(node())


@pytest.fixture(scope="module")
def user_files(issuer: Issuer) -> TlsFiles:
    return issuer.files(user())


# Who gets through.


def test_user_and_node_of_one_cluster_see_who_the_other_is(server_files: TlsFiles, user_files: TlsFiles) -> None:
    of_server, of_client = handshake(server_context(server_files), client_context(user_files))

    assert Identity.of_certificate(of_server, CLUSTER) == node()
    assert Identity.of_certificate(of_client, CLUSTER) == user()


def test_a_node_connects_to_a_node(issuer: Issuer, server_files: TlsFiles) -> None:
    _, of_client = handshake(server_context(server_files), client_context(issuer.files(node("node-2"))))

    assert Identity.of_certificate(of_client, CLUSTER) == node("node-2")


def test_both_sides_speak_version_1_3(server_files: TlsFiles, user_files: TlsFiles) -> None:
    ends = converse(server_context(server_files), client_context(user_files))

    assert (ends.client.version(), ends.server.version()) == ("TLSv1.3", "TLSv1.3")


def test_a_client_without_certificate_is_refused(server_files: TlsFiles) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        converse(server_context(server_files), bare_client(None))


def test_a_client_of_a_foreign_authority_is_refused(server_files: TlsFiles, foreign: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        converse(server_context(server_files), bare_client(foreign.files(user())))


def test_a_client_whose_certificate_expired_is_refused(server_files: TlsFiles, issuer: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        converse(server_context(server_files), bare_client(issuer.files(user(), LONG_AGO)))


def test_a_client_whose_certificate_is_not_valid_yet_is_refused(server_files: TlsFiles, issuer: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        converse(server_context(server_files), bare_client(issuer.files(user(), LONG_FROM_NOW)))


def test_a_client_that_signed_for_itself_is_refused(server_files: TlsFiles, issuer: Issuer) -> None:
    authority = ca.create_authority(CLUSTER, NOW)
    files = issuer.write("self", authority.certificate, ca.key_pem(authority.key))

    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        converse(server_context(server_files), bare_client(files))


def test_a_client_with_a_certificate_for_servers_alone_is_refused(server_files: TlsFiles, issuer: Issuer) -> None:
    files = _reissued(issuer, issuer.files(node()), "server-only", [x509.OID_SERVER_AUTH])

    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        converse(server_context(server_files), bare_client(files))


def test_a_certificate_that_later_versions_of_python_would_refuse_is_refused_by_all(
    server_files: TlsFiles, issuer: Issuer
) -> None:
    purposes = [x509.OID_CLIENT_AUTH]
    files = _reissued(issuer, issuer.files(user()), "lax", purposes, without=(x509.AuthorityKeyIdentifier,))

    with pytest.raises(ssl.SSLCertVerificationError, match="Missing Authority Key Identifier"):
        converse(server_context(server_files), bare_client(files))


def test_the_certificate_of_the_authority_itself_names_nobody(server_files: TlsFiles, issuer: Issuer) -> None:
    authority = issuer.authority
    files = issuer.write("authority", authority.certificate, ca.key_pem(authority.key))

    with pytest.raises((ssl.SSLCertVerificationError, IdentityError)):
        Identity.of_certificate(handshake(server_context(server_files), bare_client(files))[1], CLUSTER)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1])
def test_a_client_of_an_older_version_is_refused(
    server_files: TlsFiles, user_files: TlsFiles, version: ssl.TLSVersion
) -> None:
    client = bare_client(user_files, version)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED

    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        converse(server_context(server_files), client)


def test_plaintext_is_refused(server_files: TlsFiles) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(server_files).wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(b"GET / HTTP/1.1\r\nHost: logd\r\n\r\n")

    with pytest.raises(ssl.SSLError, match=r"HTTP_REQUEST|WRONG_VERSION_NUMBER"):
        server.do_handshake()


def test_a_server_of_a_foreign_authority_is_refused(user_files: TlsFiles, foreign: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        converse(bare_server(foreign.files(node())), client_context(user_files))


def test_a_server_whose_certificate_expired_is_refused(user_files: TlsFiles, issuer: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        converse(bare_server(issuer.files(node(), LONG_AGO)), client_context(user_files))


def test_a_user_cannot_pose_as_a_server(user_files: TlsFiles, issuer: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        converse(bare_server(issuer.files(user("eve"))), client_context(user_files))


def test_no_session_is_resumed(server_files: TlsFiles, user_files: TlsFiles) -> None:
    server, client = server_context(server_files), client_context(user_files)
    first = converse(server, client).client

    assert first.session is None or not first.session.has_ticket
    second = converse(server, client, session=first.session)
    assert second.client.session_reused is not True


def test_each_call_makes_a_context_of_its_own_that_believes_what_the_files_say_now(tmp_path: Path) -> None:
    before, after = Issuer.create(tmp_path / "before"), Issuer.create(tmp_path / "after")
    files = before.files(node())
    old = server_context(files)
    # Two CAs in one file, while one replaces the other.
    both = Path(files.ca).read_bytes() + (after.directory / "ca.crt").read_bytes()
    Path(files.ca).write_bytes(both)

    new = server_context(files)

    newcomer = bare_client(after.files(user()))
    assert Identity.of_certificate(handshake(new, newcomer)[1], CLUSTER) == user()
    with pytest.raises(ssl.SSLCertVerificationError):
        converse(old, newcomer)


def test_secrets_are_not_written_where_the_environment_says(
    server_files: TlsFiles, user_files: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "secrets"))

    converse(server_context(server_files), client_context(user_files))

    assert not (tmp_path / "secrets").exists()


def test_a_node_can_see_whom_it_will_be_taken_for_and_until_when(issuer: Issuer) -> None:
    certificate = own_certificate(issuer.files(node("node-7"), hosts=["localhost", "::1"]))

    assert Identity.of_certificate(certificate, CLUSTER) == node("node-7")
    expiry = dt.datetime.fromtimestamp(expiry_seconds(certificate), dt.UTC)
    assert expiry == (NOW + ca.LEAF_LIFETIME).replace(microsecond=0)


def test_a_certificate_with_an_intermediate_authority_is_told_from_one_of_nobody(issuer: Issuer) -> None:
    # Our CA issues leaves only, so what an intermediate CA of it issues is refused.
    key = ca.new_key()
    below = ca.Authority(_intermediate(issuer, key.public_key()), key)
    leaf_key = ca.new_key()
    leaf = ca.issue(below, user(), leaf_key.public_key(), NOW)
    files = issuer.write("below", leaf, ca.key_pem(leaf_key))
    with open(files.certificate, "ab") as file:
        file.write(ca.certificate_pem(below.certificate))

    with pytest.raises(SecurityError, match=re.escape(f"{files.certificate}: refused by OpenSSL (path length")):
        client_context(files)


# What is said about files that are not in order: one line, the file, and what to do.


def _reissued(
    issuer: Issuer, files: TlsFiles, name: str, purposes: list[x509.ObjectIdentifier], without: tuple[type, ...] = ()
) -> TlsFiles:
    """Return files with the same content but other purposes, or without those of `without`."""
    old = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    builder = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=old.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=old.not_valid_before_utc,
        not_valid_after=old.not_valid_after_utc,
    )
    for extension in old.extensions:
        if isinstance(extension.value, without):
            continue
        usage = isinstance(extension.value, x509.ExtendedKeyUsage)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage(purposes) if usage else extension.value, extension.critical
        )
    return issuer.write(name, builder.sign(issuer.authority.key, hashes.SHA256()), Path(files.key).read_bytes())


def _intermediate(issuer: Issuer, public_key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    old = issuer.authority.certificate
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "below")])
    identifier = old.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder(old.subject, name, public_key, 7, NOW - ca.BACKDATED, NOW + ca.LEAF_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(old.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(issuer.authority.key, hashes.SHA256())
    )


def said_of(files: TlsFiles) -> str:
    with pytest.raises(SecurityError) as caught:
        server_context(files)
    with pytest.raises(SecurityError):
        own_certificate(files)
    text = str(caught.value)
    assert "\n" not in text
    return text


def replace(files: TlsFiles, part: str, path: Path | str) -> TlsFiles:
    return TlsFiles(**{name: str(path) if name == part else getattr(files, name) for name in TlsFiles.__slots__})


@pytest.mark.parametrize("part", ["ca", "certificate", "key"])
def test_a_file_that_cannot_be_read_is_named(server_files: TlsFiles, part: str, tmp_path: Path) -> None:
    advice = "; correct the path or the file's permissions"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    for path, reason in ((tmp_path / "no", "No such file or directory"), (tmp_path, "Is a directory"), (pipe, "not a")):
        said = said_of(replace(server_files, part, path))
        assert said.startswith(f"{path}: cannot be read: {reason}")
        assert said.endswith(advice)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(server_files: TlsFiles, tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(Path(server_files.key).read_bytes())
    path.chmod(0)

    assert said_of(replace(server_files, "key", path)).startswith(f"{path}: cannot be read: Permission denied")


@pytest.mark.parametrize("content", [b"", b"\0\xff" * 1_000, b"not PEM at all\n"])
@pytest.mark.parametrize(
    ("part", "what"), [("ca", "certificate"), ("certificate", "certificate"), ("key", "private key")]
)
def test_a_file_that_is_no_pem_is_named(
    server_files: TlsFiles, part: str, what: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    said = said_of(replace(server_files, part, path))

    assert said == f"{path}: holds no {what} in PEM form; put one there, or correct the path"


@pytest.mark.parametrize("part", ["ca", "certificate", "key"])
@pytest.mark.parametrize("damage", ["torn", "garbled"])
def test_a_damaged_file_is_named(server_files: TlsFiles, part: str, damage: str, tmp_path: Path) -> None:
    whole = Path(getattr(server_files, part)).read_text()
    path = tmp_path / "file"
    path.write_text(whole[:100] if damage == "torn" else whole.replace("M", "!", 3))

    assert said_of(replace(server_files, part, path)).startswith(f"{path}: ")


def test_an_oversized_file_is_named(server_files: TlsFiles, tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" * 50_000)

    assert said_of(replace(server_files, "ca", path)).startswith(f"{path}: longer than 1048576 bytes")


def test_certificate_and_key_exchanged_are_told(server_files: TlsFiles) -> None:
    files = TlsFiles(server_files.ca, server_files.key, server_files.certificate)

    assert said_of(files).startswith(f"{server_files.key}: holds no certificate in PEM form")


def test_a_key_of_another_certificate_is_told(server_files: TlsFiles, user_files: TlsFiles) -> None:
    files = replace(server_files, "key", user_files.key)

    assert said_of(files) == (
        f"{user_files.key}: not the key of {server_files.certificate}; put the two there that were issued together"
    )


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_a_key_with_a_passphrase_is_told_and_nobody_is_asked_for_it(
    server_files: TlsFiles, form: serialization.PrivateFormat, tmp_path: Path
) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(
        ca.new_key().private_bytes(
            serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"a passphrase")
        )
    )

    said = said_of(replace(server_files, "key", path))

    assert said == f"{path}: the key has a passphrase; store it without one, in a file of mode 0600"


def test_an_expired_certificate_is_told(issuer: Issuer) -> None:
    files = issuer.files(node(), LONG_AGO)

    assert said_of(files) == f"{files.certificate}: expired; issue a new one"


def test_a_certificate_that_is_not_valid_yet_is_told(issuer: Issuer) -> None:
    files = issuer.files(node(), LONG_FROM_NOW)

    assert said_of(files) == f"{files.certificate}: not valid yet; correct this machine's clock, or wait"


def test_an_expired_authority_is_told(tmp_path: Path) -> None:
    made = NOW - ca.AUTHORITY_LIFETIME - dt.timedelta(days=1)
    files = Issuer.create(tmp_path / "old", made).files(node(), made)

    assert said_of(files).startswith(f"{files.ca}: the CA expired on ")


def test_a_certificate_of_another_authority_is_told(server_files: TlsFiles, foreign: Issuer, tmp_path: Path) -> None:
    same_name = replace(server_files, "ca", foreign.directory / "ca.crt")
    other_name = Issuer.create(tmp_path / "other", NOW, "meadow").files(node())
    unknown = replace(server_files, "ca", other_name.ca)

    for files in (same_name, unknown):
        said = said_of(files)
        assert said.startswith(f"{files.certificate}: not issued by the CA {files.ca}")
        assert said.endswith("; issue one from it, or correct the path")


def test_a_leaf_in_the_place_of_the_authority_is_told(server_files: TlsFiles) -> None:
    files = replace(server_files, "ca", server_files.certificate)

    assert said_of(files).startswith(f"{server_files.certificate}: not the certificate of a CA")


def test_a_certificate_that_signed_for_itself_is_told(issuer: Issuer) -> None:
    authority = ca.create_authority(CLUSTER, NOW)
    files = issuer.write("self", authority.certificate, ca.key_pem(authority.key))

    assert said_of(files).startswith(f"{files.certificate}: signed by itself; issue one from the CA {files.ca}")


def test_a_user_certificate_for_a_server_is_told(user_files: TlsFiles) -> None:
    assert said_of(user_files) == f"{user_files.certificate}: not made for a server; issue one with that purpose"


def test_a_server_certificate_for_a_client_is_told(issuer: Issuer) -> None:
    files = _reissued(issuer, issuer.files(node()), "server-alone", [x509.OID_SERVER_AUTH])

    with pytest.raises(SecurityError) as caught:
        client_context(files)

    assert str(caught.value) == f"{files.certificate}: not made for a client; issue one with that purpose"


def test_what_a_running_daemon_needs_does_not_load_the_library_that_makes_certificates() -> None:
    program = (
        "import sys, logd.config, logd.security.tls, logd.security.identity\n"
        "sys.exit(any(name.split('.')[0] == 'cryptography' for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


# What a node is told of its settings: every problem with its key, and with where that was set.


def config_of(files: TlsFiles, cluster_name: str = CLUSTER, name: str = "node-1") -> Config:
    flags = {"node.data_dir": "data", "tls.ca": files.ca, "tls.certificate": files.certificate, "tls.key": files.key}
    return load(None, {"LOGD_NODE_NAME": name, "LOGD_NODE_CLUSTER_NAME": cluster_name}, flags)


def problems_of(config: Config) -> list[str]:
    with pytest.raises(NodeFilesError) as caught:
        node_tls(config)
    return caught.value.problems


def test_a_node_whose_files_fit_its_settings_gets_them(server_files: TlsFiles, user_files: TlsFiles) -> None:
    tls = node_tls(config_of(server_files))

    assert Identity.of_certificate(tls.certificate, CLUSTER) == node()
    converse(tls.context, client_context(user_files))


def test_every_file_that_is_not_there_is_told_at_once_with_its_setting(tmp_path: Path) -> None:
    config = config_of(TlsFiles(*(str(tmp_path / name) for name in ("ca.crt", "node.crt", "node.key"))))

    advice = "cannot be read: No such file or directory; correct the path or the file's permissions"
    assert problems_of(config) == [
        f"tls.ca: {config.tls.ca}: {advice} (from --tls-ca)",
        f"tls.certificate: {config.tls.certificate}: {advice} (from --tls-certificate)",
        f"tls.key: {config.tls.key}: {advice} (from --tls-key)",
    ]


def test_files_that_do_not_belong_together_are_told_with_the_setting_at_fault(
    issuer: Issuer, foreign: Issuer, server_files: TlsFiles
) -> None:
    other = issuer.files(node("node-2"))

    (mixed,) = problems_of(config_of(replace(server_files, "key", other.key)))
    (strange,) = problems_of(config_of(replace(server_files, "ca", foreign.files(node()).ca)))

    assert mixed.startswith(f"tls.key: {other.key}: not the key of {server_files.certificate}")
    assert mixed.endswith("(from --tls-key)")
    assert strange.startswith(f"tls.certificate: {server_files.certificate}: not issued by the CA")
    assert strange.endswith("(from --tls-certificate)")


def test_names_that_differ_are_told_from_both_sides(server_files: TlsFiles) -> None:
    problems = problems_of(config_of(server_files, "vineyard", "node-7"))

    where = f"{server_files.certificate} (from --tls-certificate); correct the one or issue the other"
    assert problems == [
        f"node.cluster_name: vineyard (from LOGD_NODE_CLUSTER_NAME), but the certificate names the cluster {CLUSTER}: "
        + where,
        f"node.name: node-7 (from LOGD_NODE_NAME), but the certificate names the node node-1: {where}",
    ]


def test_the_certificate_of_a_user_is_none_for_a_node(user_files: TlsFiles) -> None:
    (problem,) = problems_of(config_of(user_files, name="ada"))

    assert problem.startswith(f"tls.certificate: {user_files.certificate}: not made for a server")
