"""Everything that can be imported from `trionode`, which takes it from here."""

from trionode._connection.end import ConnectionEnd as ConnectionEnd, EndReason as EndReason
from trionode._connection.hand_over import RenewalCause as RenewalCause
from trionode._credentials.ca_pool import CAPool as CAPool
from trionode._managers.auth_manager import (
    UNCHANGED as UNCHANGED,
    CertAuthManager as CertAuthManager,
    Unchanged as Unchanged,
)
from trionode._managers.statistics import ManagerStatistics as ManagerStatistics
from trionode._managers.trust import LiveLink as LiveLink

from ._connection.channel import ServiceChannel as ServiceChannel
from ._connection.connection import Connection as Connection
from ._connection.context_filter import ContextFilter as ContextFilter
from ._connection.interceptors import (
    CallSide as CallSide,
    InterceptedCall as InterceptedCall,
    Interceptor as Interceptor,
    Proceed as Proceed,
)
from ._connection.owner import ConnectionStatistics as ConnectionStatistics
from ._connection.services import Allow as Allow, Service as Service, current_channel as current_channel
from ._credentials.crl import CRLPolicy as CRLPolicy, CRLSet as CRLSet
from ._credentials.key_pair import KeyPair as KeyPair
from ._credentials.policy import ClientAuth as ClientAuth
from ._credentials.revocation_list import Revocation as Revocation
from ._credentials.validity import CredentialRole as CredentialRole, Validity as Validity
from ._errors import (
    ApplicationCode as ApplicationCode,
    CertificateError as CertificateError,
    CertificateReason as CertificateReason,
    FixedAtStartupError as FixedAtStartupError,
    HandshakeError as HandshakeError,
    HandshakeReason as HandshakeReason,
    HandshakeTimeoutError as HandshakeTimeoutError,
    ListenError as ListenError,
    LocalProtocolError as LocalProtocolError,
    NetworkDisabledError as NetworkDisabledError,
    NoRouteError as NoRouteError,
    PeerRejectedError as PeerRejectedError,
    PeerUnverifiedError as PeerUnverifiedError,
    ProtocolError as ProtocolError,
    Refused as Refused,
    RejectionCode as RejectionCode,
    RemoteCode as RemoteCode,
    RemoteError as RemoteError,
    RemoteProtocolError as RemoteProtocolError,
    Stage as Stage,
    TrionodeError as TrionodeError,
    UnverifiedReason as UnverifiedReason,
)
from ._handshake.acceptor import Acceptor as Acceptor, AcceptorStatistics as AcceptorStatistics
from ._handshake.cookie import generate_cookie as generate_cookie
from ._identity.names import NodeName as NodeName
from ._identity.peer import Peer as Peer
from ._managers.check import check_key_pair as check_key_pair
from ._managers.findings import Finding as Finding, FindingCode as FindingCode, Severity as Severity
from ._managers.follower import Follower as Follower, FollowerStatus as FollowerStatus, follow_source as follow_source
from ._managers.manager import CertManager as CertManager
from ._managers.sources import Credentials as Credentials, FileSource as FileSource, Source as Source
from ._managers.trust import (
    StrandedPeer as StrandedPeer,
    StrandedPeers as StrandedPeers,
    TrustRotationError as TrustRotationError,
)
from ._node.connector import Connector as Connector, ConnectorPhase as ConnectorPhase, ConnectorState as ConnectorState
from ._node.events import (
    AcceptorDown as AcceptorDown,
    AcceptorUp as AcceptorUp,
    CertificateExpiring as CertificateExpiring,
    ConnectionDown as ConnectionDown,
    ConnectionUp as ConnectionUp,
    ConnectorChanged as ConnectorChanged,
    EventStream as EventStream,
    GenerationPublished as GenerationPublished,
    HandedOver as HandedOver,
    HandOverFailed as HandOverFailed,
    HandshakeRefused as HandshakeRefused,
    NameInUse as NameInUse,
    NodeEvent as NodeEvent,
    PeerFound as PeerFound,
    PeerLost as PeerLost,
    ResolverTrouble as ResolverTrouble,
    RevocationListExpiring as RevocationListExpiring,
    RotationRefused as RotationRefused,
    Side as Side,
    SourceTrouble as SourceTrouble,
)
from ._node.mesh import Mesh as Mesh
from ._node.node import (
    Node as Node,
    open_node as open_node,
    serve_node as serve_node,
)
from ._node.options import (
    AcceptorOptions as AcceptorOptions,
    LiveConnections as LiveConnections,
    NetworkMode as NetworkMode,
    NetworkOptions as NetworkOptions,
    NodeOptions as NodeOptions,
    Renew as Renew,
    Route as Route,
)
from ._node.resolvers import (
    Endpoint as Endpoint,
    NamingResolver as NamingResolver,
    Registrar as Registrar,
    Resolver as Resolver,
    ResolverError as ResolverError,
    WatchingResolver as WatchingResolver,
)
from ._node.routes import RouteHandle as RouteHandle
from ._node.statistics import (
    HandshakeCount as HandshakeCount,
    HandshakeOutcome as HandshakeOutcome,
    HandshakeTimes as HandshakeTimes,
    ManagerUse as ManagerUse,
    NodeStatistics as NodeStatistics,
    TimeHistogram as TimeHistogram,
)
from ._node.typed import TypedChannel as TypedChannel, call_typed as call_typed, typed_service as typed_service
from ._status.unix_socket import serve_status as serve_status
from ._streams.client import open_tls_stream as open_tls_stream, wrap_client_stream as wrap_client_stream
from ._streams.monitor import ServerMonitor as ServerMonitor, ServerStatistics as ServerStatistics
from ._streams.server import (
    serve_tls as serve_tls,
    serve_tls_listeners as serve_tls_listeners,
    wrap_server_stream as wrap_server_stream,
)
from ._streams.stream import TLSStream as TLSStream
from ._tls.contexts import TLSContexts as TLSContexts
from ._transport.given import adopt_listener as adopt_listener, inherited_listeners as inherited_listeners
from ._transport.interfaces import Listener as Listener, Transport as Transport
from ._util.public_names import show_as as _show_as
from .discovery.local import LocalRegistry as LocalRegistry

_show_as("trionode", vars())
