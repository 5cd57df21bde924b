"""Who may do what.

For: the service's verbs, each of which asks here first. Must not know: certificates or connections. The one idea: a
principal, an action and a resource go in, and NotAuthorized comes out or nothing.

Today there is one rule: whoever holds a certificate of this cluster, a user or a node, may do everything in it. A
certificate of another cluster does not get as far as a request. Rules per principal are an addition to this room.
"""

from typing import Final

from wire.errors import NotAuthorized

PRODUCE: Final = "produce"
CONSUME: Final = "consume"
DESCRIBE: Final = "describe"
ADMIN: Final = "admin"


class MembersOfCluster:
    """Allows the principals of one cluster, by name, and nobody else.

    Arguments: `cluster_name`, as configured.
    """

    def __init__(self, cluster_name: str) -> None:
        self._prefix = f"spiffe://{cluster_name}/"

    def check(self, principal: str, action: str, resource: str) -> None:
        """Raises NotAuthorized."""
        if not principal.startswith(self._prefix):
            raise NotAuthorized(
                f"{principal} may not {action} {resource}",
                {"principal": principal, "action": action, "resource": resource},
            )
