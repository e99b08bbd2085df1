"""Options that make a node less strict than the default: named, so that each is logged, once, as a warning."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from trionode._credentials.crl import STRICT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .acceptor_plan import AcceptorPlan
    from .options import NodeOptions


class InsecureOption(Enum):
    """One way to be less strict than the default; the values are those of the options."""

    INSECURE_SKIP_VERIFY = "insecure_skip_verify"
    UNBOUND_NAMES = "bind_names=False"
    UNVERIFIED_CLIENTS = "unverified clients"
    UNKNOWN_REVOCATION = "crl_policy"


def insecure_options(options: NodeOptions, acceptors: Sequence[AcceptorPlan]) -> dict[InsecureOption, str]:
    """Those that are in effect with these options and acceptors, each with the sentence to log."""
    found: dict[InsecureOption, str] = {}
    network = options.network
    if network.insecure_skip_verify or any(route.insecure_skip_verify for route in network.routes.values()):
        found[InsecureOption.INSECURE_SKIP_VERIFY] = "some dials accept any server under any name"
    routed = [route.cert_manager for route in network.routes.values()]
    serving = [manager for plan in acceptors for _, manager in plan.managers.items()]
    for manager in (options.cert_manager, *serving, *routed):
        if manager is not None and manager.crls is not None and manager.crl_policy != STRICT:
            found[InsecureOption.UNKNOWN_REVOCATION] = (
                f"certificates may pass though they were revoked: {manager.crl_policy}"
            )
    for plan in acceptors:
        if not plan.bind_names:
            found[InsecureOption.UNBOUND_NAMES] = "every holder of a verified certificate may claim any node name"
        guarded = options.authorize is not None or plan.cookie is not None
        for mode in (manager.client_auth for _, manager in plan.managers.items()):
            if not (mode.verifies and mode.requires) and not guarded:
                found[InsecureOption.UNVERIFIED_CLIENTS] = (
                    f"client_auth {mode.name} with neither cookie nor authorize: any client may connect and call "
                    "services"
                )
    return found
