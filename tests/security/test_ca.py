"""What the authority issues, and that a developer's certificates are in order after every start."""

import concurrent.futures
import datetime as dt
import fcntl
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from logd.security import ca
from logd.security.ca import DevelopmentCertificates, ensure_development_certificates
from logd.security.identity import Identity
from logd.security.tls import SecurityError, client_context, own_certificate, server_context
from tests.security.certificates import CLUSTER, NOW, handshake, node, user

# In the order in which they are written.
FILES = ("ca.key", "ca.crt", "node.key", "node.crt", "user.key", "user.crt")


def ensure(directory: Path, now: dt.datetime = NOW, hosts: tuple[str, ...] = ()) -> DevelopmentCertificates:
    return ensure_development_certificates(str(directory), CLUSTER, "node-1", hosts, now=now)


def written(certificates: DevelopmentCertificates) -> list[str]:
    return [os.path.basename(path) for path in certificates.written]


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


def check_in_order(certificates: DevelopmentCertificates) -> None:
    of_server, of_client = handshake(server_context(certificates.node), client_context(certificates.user))
    assert Identity.of_certificate(of_server, CLUSTER) == node()
    assert Identity.of_certificate(of_client, CLUSTER) == user(ca.DEVELOPMENT_USER)
    # The CA's key may be kept elsewhere; the others are in use.
    authority_keys = [path for path in (certificates.ca_key,) if os.path.exists(path)]
    for key in (*authority_keys, certificates.node.key, certificates.user.key):
        assert stat.S_IMODE(os.stat(key).st_mode) == 0o600


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tls"


# What is issued.


def test_an_authority_is_good_for_ten_years_and_for_issuing_leaves_alone() -> None:
    certificate = ca.create_authority(CLUSTER, NOW).certificate

    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert certificate.not_valid_after_utc == (NOW + dt.timedelta(days=3650)).replace(microsecond=0)
    assert certificate.not_valid_before_utc < NOW
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


@pytest.mark.parametrize("identity", [node(), user()], ids=str)
def test_a_leaf_names_its_holder_once_and_is_good_for_a_year(identity: Identity) -> None:
    certificate = ca.issue(ca.create_authority(CLUSTER, NOW), identity, ca.new_key().public_key(), NOW)

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(identity)]
    assert certificate.not_valid_after_utc == (NOW + dt.timedelta(days=365)).replace(microsecond=0)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.value.ca is False


def test_a_node_serves_and_connects_and_a_user_connects_alone() -> None:
    authority, key = ca.create_authority(CLUSTER, NOW), ca.new_key().public_key()

    of_node = ca.issue(authority, node(), key, NOW).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    of_user = ca.issue(authority, user(), key, NOW).extensions.get_extension_for_class(x509.ExtendedKeyUsage)

    assert list(of_node.value) == [x509.OID_SERVER_AUTH, x509.OID_CLIENT_AUTH]
    assert list(of_user.value) == [x509.OID_CLIENT_AUTH]


def test_a_leaf_does_not_outlive_its_authority() -> None:
    authority = ca.create_authority(CLUSTER, NOW - ca.AUTHORITY_LIFETIME + dt.timedelta(days=3))

    leaf = ca.issue(authority, user(), ca.new_key().public_key(), NOW)

    assert leaf.not_valid_after_utc == authority.certificate.not_valid_after_utc


def test_an_expired_authority_issues_nothing() -> None:
    authority = ca.create_authority(CLUSTER, NOW)

    with pytest.raises(SecurityError, match="the CA expired on"):
        ca.issue(authority, user(), ca.new_key().public_key(), NOW + ca.AUTHORITY_LIFETIME)


def test_a_node_names_its_hosts_and_a_user_none() -> None:
    authority, key = ca.create_authority(CLUSTER, NOW), ca.new_key().public_key()
    hosts = ["logd-0.logd", "10.0.0.7", "fe80::1%eth0"]

    of_node = ca.issue(authority, node(), key, NOW, hosts).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    of_user = ca.issue(authority, user(), key, NOW, hosts).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )

    assert of_node.value.get_values_for_type(x509.DNSName) == ["logd-0.logd"]
    assert [str(address) for address in of_node.value.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "fe80::1"]
    assert len(list(of_user.value)) == 1


@pytest.mark.parametrize("host", ["", "bücher.example", "a" * 254])
def test_a_host_that_no_certificate_can_name_is_told(host: str) -> None:
    with pytest.raises(SecurityError, match="neither a DNS name in ASCII nor an IP address"):
        ca.issue(ca.create_authority(CLUSTER, NOW), node(), ca.new_key().public_key(), NOW, [host])


def test_the_number_of_hosts_is_bounded() -> None:
    with pytest.raises(SecurityError, match="65 hosts for one certificate; at most 64"):
        ca.issue(ca.create_authority(CLUSTER, NOW), node(), ca.new_key().public_key(), NOW, ["a"] * 65)


def test_an_authority_of_no_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="is no name of a cluster"):
        ca.create_authority("Orchard/", NOW)


# How files are written.


@pytest.fixture
def loosest_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def strictest_umask() -> Iterator[None]:
    before = os.umask(0o777)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loosest_umask")
def test_keys_and_their_directory_are_the_owners_alone_whatever_the_umask_gives(directory: Path) -> None:
    directory.parent.mkdir()

    certificates = ensure(directory)

    check_in_order(certificates)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.usefixtures("strictest_umask")
def test_a_certificate_is_readable_whatever_the_umask_takes(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"

    ca.write_certificate(str(path), ca.create_authority(CLUSTER, NOW).certificate)

    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_writing_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "node.key"
    other.write_text("precious")
    path.symlink_to(other)

    ca.write_key(str(path), ca.new_key())

    assert other.read_text() == "precious"
    assert not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writing_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "node.key").mkdir()

    with pytest.raises(SecurityError, match=r"node\.key: cannot be written: Is a directory"):
        ca.write_key(str(tmp_path / "node.key"), ca.new_key())

    assert os.listdir(tmp_path) == ["node.key"]


# A developer's certificates.


def test_everything_is_made_once_and_then_left_alone(directory: Path) -> None:
    first = ensure(directory)
    before = contents(directory)

    second = ensure(directory)

    assert written(first) == list(FILES)
    assert written(second) == []
    assert contents(directory) == before
    check_in_order(second)
    assert sorted(os.listdir(directory)) == sorted([".lock", *FILES])


def test_the_node_answers_to_the_local_host_and_to_its_hosts(directory: Path) -> None:
    certificates = ensure(directory, hosts=("0.0.0.0", "logd.example"))

    assert own_certificate(certificates.node)["subjectAltName"] == (
        ("URI", f"spiffe://{CLUSTER}/node/node-1"),
        ("DNS", "logd.example"),
        ("DNS", "localhost"),
        ("IP Address", "127.0.0.1"),
        ("IP Address", "0:0:0:0:0:0:0:1"),
    )


@pytest.mark.parametrize("count", range(len(FILES)))
def test_an_attempt_that_was_cut_is_completed(directory: Path, count: int) -> None:
    ensure(directory)
    before = contents(directory)
    for name in FILES[count:]:
        (directory / name).unlink()
    (directory / ".node.crt.0123456789abcdef.tmp").write_text("half a certif")

    certificates = ensure(directory)

    check_in_order(certificates)
    assert written(certificates) == list(FILES[count:])
    assert all((directory / name).read_bytes() == before[name] for name in FILES[:count])
    assert sorted(os.listdir(directory)) == sorted([".lock", *FILES])


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "garbage"])
@pytest.mark.parametrize(
    ("names", "made_anew"),
    [
        (("ca.crt",), ["ca.crt"]),
        (("node.key",), ["node.key", "node.crt"]),
        (("node.crt",), ["node.crt"]),
        (("user.key",), ["user.key", "user.crt"]),
        (("user.crt",), ["user.crt"]),
        # Nothing is to be issued, so the CA's key is not missed.
        (("ca.key",), []),
        (("ca.key", "ca.crt"), ["ca.key", "ca.crt", "node.crt", "user.crt"]),
    ],
    ids=str,
)
def test_what_is_damaged_is_made_anew_and_no_more(
    directory: Path, names: tuple[str, ...], made_anew: list[str], damage: str
) -> None:
    ensure(directory)
    for path in (directory / name for name in names):
        if damage == "missing":
            path.unlink()
        else:
            whole = path.read_bytes()
            path.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "garbage": b"\xff" * 100}[damage])

    certificates = ensure(directory)

    assert written(certificates) == made_anew
    check_in_order(certificates)


@pytest.mark.parametrize(
    ("days", "made_anew"),
    [
        (0, []),
        (334, []),
        (335, ["node.crt", "user.crt"]),
        (400, ["node.crt", "user.crt"]),
        (3619, ["node.crt", "user.crt"]),
        (3620, ["ca.crt", "node.crt", "user.crt"]),
        (9000, ["ca.crt", "node.crt", "user.crt"]),
        # The clock went back behind what it was when the certificates were made.
        (-1, ["ca.crt", "node.crt", "user.crt"]),
    ],
)
def test_what_expires_within_thirty_days_is_issued_anew_for_the_same_key(
    directory: Path, days: int, made_anew: list[str]
) -> None:
    ensure(directory)
    before = contents(directory)

    certificates = ensure(directory, NOW + dt.timedelta(days=days))

    assert written(certificates) == made_anew
    assert [name for name in FILES if (directory / name).read_bytes() != before[name]] == made_anew
    leaf = x509.load_pem_x509_certificate((directory / "node.crt").read_bytes())
    authority = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    leaf.verify_directly_issued_by(authority)
    assert leaf.not_valid_after_utc > NOW + dt.timedelta(days=days + 29)


def test_a_renewed_authority_keeps_what_it_issued_valid(directory: Path) -> None:
    certificates = ensure(directory)
    (directory / "ca.crt").unlink()

    again = ensure(directory)

    assert written(again) == ["ca.crt"]
    check_in_order(certificates)


def test_a_new_host_is_added_by_a_new_certificate_and_a_dropped_one_is_no_reason(directory: Path) -> None:
    ensure(directory, hosts=("a.example",))

    assert written(ensure(directory, hosts=("a.example", "b.example"))) == ["node.crt"]
    assert written(ensure(directory)) == []


def test_a_node_of_another_name_gets_its_own_certificate(directory: Path) -> None:
    ensure(directory)

    certificates = ensure_development_certificates(str(directory), CLUSTER, "node-2", (), now=NOW)

    assert written(certificates) == ["node.crt"]
    assert Identity.of_certificate(own_certificate(certificates.node), CLUSTER) == node("node-2")


def test_a_certificate_that_somebody_else_issued_is_replaced(directory: Path, tmp_path: Path) -> None:
    ensure(directory)
    ensure(tmp_path / "other")
    for name in ("user.crt", "user.key"):
        (directory / name).write_bytes((tmp_path / "other" / name).read_bytes())

    certificates = ensure(directory)

    assert written(certificates) == ["user.crt"]
    check_in_order(certificates)


def test_a_key_that_does_not_belong_to_its_certificate_gets_one_of_its_own(directory: Path) -> None:
    ensure(directory)
    ca.write_key(str(directory / "node.key"), ca.new_key())

    certificates = ensure(directory)

    assert written(certificates) == ["node.crt"]
    check_in_order(certificates)


def test_a_leaf_key_of_another_kind_is_replaced(directory: Path) -> None:
    ensure(directory)
    key = rsa.generate_private_key(65_537, 2_048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "node.key").write_bytes(key)

    assert written(ensure(directory)) == ["node.key", "node.crt"]


def test_a_key_that_others_could_read_is_theirs_no_longer(directory: Path) -> None:
    ensure(directory)
    for name in ("ca.key", "node.key", "user.key"):
        (directory / name).chmod(0o644)

    certificates = ensure(directory)

    check_in_order(certificates)


@pytest.mark.parametrize("foreign_key", [False, True])
def test_without_the_authoritys_key_nothing_can_be_issued_and_nothing_is_changed(
    directory: Path, *, foreign_key: bool
) -> None:
    ensure(directory)
    (directory / "user.crt").unlink()
    if foreign_key:
        ca.write_key(str(directory / "ca.key"), ca.new_key())
    else:
        (directory / "ca.key").unlink()
    before = {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()}

    with pytest.raises(SecurityError, match=r"ca\.key: missing, or not the key of ca\.crt.*delete .* to begin anew"):
        ensure(directory)

    assert {name: (directory / name).read_bytes() for name in FILES if (directory / name).exists()} == before


def test_a_directory_of_another_cluster_is_told_and_left_alone(directory: Path) -> None:
    ensure(directory)
    before = contents(directory)

    with pytest.raises(SecurityError, match=r"ca\.crt: not the CA of cluster meadow; start with the former"):
        ensure_development_certificates(str(directory), "meadow", "node-1", (), now=NOW)

    assert contents(directory) == before


def test_starters_at_once_make_everything_once(directory: Path) -> None:
    starters = 8
    barrier = threading.Barrier(starters)

    def start() -> DevelopmentCertificates:
        barrier.wait()
        return ensure(directory)

    with concurrent.futures.ThreadPoolExecutor(starters) as pool:
        results = [future.result() for future in [pool.submit(start) for _ in range(starters)]]

    assert sorted(itertools.chain.from_iterable(written(result) for result in results)) == sorted(FILES)
    check_in_order(results[0])


def test_a_starter_that_hangs_is_waited_for_no_longer_than_allowed(directory: Path) -> None:
    ensure(directory)
    with open(directory / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(SecurityError, match=r"\.lock: another process has held it for 0 s"):
            ensure_development_certificates(str(directory), CLUSTER, "node-1", (), now=NOW, lock_seconds=0)

    assert written(ensure(directory)) == []


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SecurityError, match=r"file/tls: Not a directory; make it accessible"):
        ensure(tmp_path / "file" / "tls")
