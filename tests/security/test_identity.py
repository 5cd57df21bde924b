"""Who a certificate says its holder is: exactly one URI, of this cluster, or nobody."""

import pytest

from logd.security.identity import Identity, IdentityError, Kind


def certificate(*names: tuple[str, str]) -> dict[str, object]:
    return {"subject": ((("commonName", "root"),),), "subjectAltName": names}


@pytest.mark.parametrize(
    "identity",
    [
        Identity("logd", Kind.NODE, "logd-0"),
        Identity("logd", Kind.USER, "developer"),
        Identity("a.b_c-d", Kind.USER, "0"),
        Identity("x" * 63, Kind.NODE, "9" * 63),
    ],
    ids=str,
)
def test_an_identity_reads_back_from_its_uri(identity: Identity) -> None:
    assert Identity.parse(str(identity)) == identity


def test_an_identity_is_written_as_the_uri_of_its_kind() -> None:
    assert str(Identity("logd", Kind.NODE, "logd-0")) == "spiffe://logd/node/logd-0"
    assert str(Identity("logd", Kind.USER, "ada")) == "spiffe://logd/user/ada"


def test_an_identity_is_a_frozen_value() -> None:
    identity = Identity("logd", Kind.USER, "ada")

    assert {identity, Identity("logd", Kind.USER, "ada")} == {identity}
    assert identity != Identity("logd", Kind.NODE, "ada")
    with pytest.raises(AttributeError):
        identity.name = "eve"  # type: ignore[misc]  # that it is refused is the claim


@pytest.mark.parametrize("name", ["", "-a", ".a", "_a", "A", "a b", "a/b", "a%62", "é", "a\n", "a\0", "٣", "x" * 64])
def test_a_name_that_would_not_read_back_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        Identity("logd", Kind.USER, name)
    with pytest.raises(ValueError, match="is no name"):
        Identity(name, Kind.USER, "ada")
    with pytest.raises(IdentityError):
        Identity.parse(f"spiffe://logd/user/{name}")


def test_a_peer_is_who_its_uri_says_whatever_else_stands_beside_it() -> None:
    names = (("DNS", "spiffe://logd/user/root"), ("URI", "spiffe://logd/node/n1"), ("IP Address", "127.0.0.1"))

    assert Identity.of_certificate(certificate(*names), "logd") == Identity("logd", Kind.NODE, "n1")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://logd",
        "spiffe://logd/",
        "spiffe://logd/node",
        "spiffe://logd/node/",
        "spiffe://logd/node/a/b",
        "spiffe://logd/node/a?x",
        "spiffe://logd/node/a#x",
        "spiffe://logd//a",
        "spiffe://logd/group/a",
        "spiffe://logd/NODE/a",
        "SPIFFE://logd/node/a",
        "https://logd/node/a",
        "spiffe://logd:1/node/a",
        "spiffe://root@logd/node/a",
        " spiffe://logd/node/a",
        "spiffe://logd/node/a\n",
    ],
)
def test_a_uri_of_another_form_names_nobody(uri: str) -> None:
    with pytest.raises(IdentityError, match="is not of the form"):
        Identity.of_certificate(certificate(("URI", uri)), "logd")


@pytest.mark.parametrize("cluster_name", ["log", "logd2", "logd.example"])
def test_a_peer_of_another_cluster_is_nobody(cluster_name: str) -> None:
    with pytest.raises(IdentityError, match=f"spiffe://{cluster_name}/user/ada belongs to another cluster than logd"):
        Identity.of_certificate(certificate(("URI", f"spiffe://{cluster_name}/user/ada")), "logd")


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ((), 0),
        ((("DNS", "spiffe://logd/user/ada"),), 0),
        ((("URI", "spiffe://logd/user/ada"), ("URI", "spiffe://logd/user/eve")), 2),
        ((("URI", "spiffe://logd/user/ada"), ("URI", "spiffe://logd/user/ada")), 2),
        ((("URI", "https://example.org"), ("URI", "spiffe://logd/user/ada")), 2),
    ],
)
def test_not_exactly_one_uri_is_nobody(names: tuple[tuple[str, str], ...], count: int) -> None:
    with pytest.raises(IdentityError, match=f"holds {count} URIs"):
        Identity.of_certificate(certificate(*names), "logd")


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_certificate_is_nobody(nothing: dict[str, object] | None) -> None:
    with pytest.raises(IdentityError, match="no certificate"):
        Identity.of_certificate(nothing, "logd")


def test_a_certificate_without_alternative_names_is_nobody() -> None:
    with pytest.raises(IdentityError, match="holds 0 URIs"):
        Identity.of_certificate({"subject": ()}, "logd")


def test_a_message_repeats_a_bounded_and_printable_part_of_a_hostile_uri() -> None:
    with pytest.raises(IdentityError) as caught:
        Identity.parse("spiffe://\x1b[2J\n" + "x" * 100_000)

    text = str(caught.value)
    assert len(text) < 300
    assert text.isprintable()
