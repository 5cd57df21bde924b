"""Who a certificate says its holder is.

Its one idea: an identity is one URI, `spiffe://<cluster name>/node/<name>` or `…/user/<name>`, and a certificate of
this cluster holds exactly one. Everything else in it (subject, host names) says nothing about who somebody is. It must
not know how the certificate was checked: whoever calls has it from a finished handshake, where TLS vouched for it.
"""

import dataclasses
import enum
import re
from collections.abc import Mapping
from typing import Final

from logd.config import NAME_SYNTAX, is_name

# A certificate holds what its maker liked; a message repeats no more of it than this.
SHOWN_CHARACTERS_MAX: Final = 160


class IdentityError(Exception):
    """The certificate does not name a node or a user of this cluster; its holder is nobody here."""


class Kind(enum.StrEnum):
    """What an identity may be; the first part of its URI's path."""

    NODE = "node"
    USER = "user"


_URI = re.compile(f"spiffe://(?P<cluster>{NAME_SYNTAX})/(?P<kind>{'|'.join(Kind)})/(?P<name>{NAME_SYNTAX})")


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """A node or a user of a cluster; `str()` gives its URI.

    Raises `ValueError` for a name that no certificate could hold.
    """

    # Invariant: both names are of the syntax of `logd.config.is_name`, so that the URI reads back as the same identity.
    cluster_name: str
    kind: Kind
    name: str

    def __post_init__(self) -> None:
        for name in (self.cluster_name, self.name):
            if not is_name(name):
                raise ValueError(f"{_shown(name)} is no name; names are of the form {NAME_SYNTAX}")

    def __str__(self) -> str:
        return f"spiffe://{self.cluster_name}/{self.kind}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> "Identity":
        """Return the identity of any cluster that `uri` names, or raise `IdentityError`."""
        if not (match := _URI.fullmatch(uri)):
            raise IdentityError(f"{_shown(uri)} is not of the form spiffe://<cluster name>/node|user/<name>")
        return cls(match["cluster"], Kind(match["kind"]), match["name"])

    @classmethod
    def of_certificate(cls, certificate: Mapping[str, object] | None, cluster_name: str) -> "Identity":
        """Return the identity that a peer's certificate holds.

        `certificate` is what `getpeercert()` returned after the handshake; `cluster_name` is the name of this cluster.
        Raises `IdentityError` if there is no certificate, or not exactly one URI in it, or one that names nobody of
        this cluster.
        """
        if not certificate:
            raise IdentityError("no certificate")
        identity = cls.of_uri_in(certificate)
        if identity.cluster_name != cluster_name:
            raise IdentityError(f"{identity} belongs to another cluster than {cluster_name}")
        return identity

    @classmethod
    def of_uri_in(cls, certificate: Mapping[str, object]) -> "Identity":
        """Return the identity of any cluster that a certificate (as above) holds, or raise `IdentityError`.

        It trusts nobody: it is for a node that looks at its own certificate.
        """
        uris = _uris(certificate)
        if len(uris) != 1:
            raise IdentityError(f"the certificate holds {len(uris)} URIs; it must hold exactly one")
        return cls.parse(uris[0])


def _uris(certificate: Mapping[str, object]) -> list[str]:
    names = certificate.get("subjectAltName", ())
    if not isinstance(names, tuple):
        return []
    return [entry[1] for entry in names if isinstance(entry, tuple) and len(entry) == 2 and entry[0] == "URI"]


def _shown(text: str) -> str:
    return ascii(text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "…")
