"""Where certificates come from: enrolment over standard protocols, EST (RFC 7030) and ACME (RFC 8555).

`ESTSource` and `ACMESource` are sources for `follow_source`; `serve_est` and `est_app` are an EST server. Needs the
extra `enrol`; each name is imported when it is asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from trionode._util.public_names import show_as as _show_as

from ._errors import EnrolmentError as EnrolmentError, EnrolmentReason as EnrolmentReason

if TYPE_CHECKING:
    from ._acme import ACMESource as ACMESource
    from ._server import EnrolmentPolicy as EnrolmentPolicy, est_app as est_app
    from ._service import serve_est as serve_est
    from ._source import ESTSource as ESTSource

__all__ = ["ACMESource", "ESTSource", "EnrolmentError", "EnrolmentPolicy", "EnrolmentReason", "est_app", "serve_est"]

_HOMES: Final = {
    "ACMESource": "_acme",
    "ESTSource": "_source",
    "EnrolmentPolicy": "_server",
    "est_app": "_server",
    "serve_est": "_service",
}

_show_as("trionode.enrolment", vars())


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    _show_as(__name__, {name: value})
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
