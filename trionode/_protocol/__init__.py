"""The node protocol on the wire, version 1. Sans-IO: bytes in, values out, and back.

This page is the specification; it is meant to suffice for a second implementation. All integers are big-endian.
"MUST" is meant as in RFC 2119; breaking one is a protocol error, which ends the connection.

Transport
    TLS 1.3 with ALPN `trionode/1`. A client that offers no ALPN completes TLS, and then has to speak the hello.

Hello
    Right after TLS, three messages, each a u16 length (at most 4096) and that many bytes of msgpack, a map with string
    keys. Unknown keys are ignored. Names are node names, `name@host`.

    1. Dialer: `versions` (list of protocol versions it speaks), `name` (its own), `incarnation` (u64, drawn at random
       when the node opened), `generation` (of the contexts it took), `limits`, `verified` (whether it verified the
       acceptor's certificate and name in TLS), `replace` (whether this connection is to replace one that exists),
       `proof` (that it has the cookie, if there is one; see `_handshake.cookie`), `join` (if this is to be a new link
       of an existing connection, see Hand-over).
    2. Acceptor: `refusal`, or `version` (the highest that both speak), `name`, `incarnation`, `generation`, `limits`,
       `verified` (whether it verified the dialer's certificate and name), `proof`, `join` (the acceptor's proof for the
       hand-over).
    3. Dialer: `refusal`, or nothing.

    `limits` is a map: `max_message_size` (the largest message that this side accepts, bytes), `window` (the credit that
    the other side starts each channel with), `max_channels` (how many the other side may have open at once),
    `max_metadata_size` (the most that this side accepts beside the messages, as metadata of one OPEN and as details and
    metadata of one RESET, encoded, bytes; 0 or absent for none).
    `refusal` is a map: `code`, and `message` for people. The side that refuses closes the link.
    The connection exists once the third message has arrived without a refusal. The dialer may send frames right behind
    that message, the acceptor only after it has read it.

Frames
    Then both sides send frames: u32 whose top byte is the kind and whose lower three bytes are the payload's length
    (at most 65 540), u32 channel, payload. Channel 0 is the connection itself. The dialer opens odd channels, the
    acceptor even ones, each side in increasing order; no number is used twice.

    ==== ======== ============================ ======================================================================
    0x01 OPEN     msgpack `service`,           open a channel to a service; `timeout` is the caller's remaining time in
                  `timeout`, `call`,           seconds, null or absent for none; with `call` true the caller takes one
                  `metadata`                   message, and the service SHOULD send no more; `metadata` see below
    0x02 MESSAGE  the message                  a whole message, at most 65 536 bytes
    0x03 FIRST    u32 total, then bytes        the first fragment of a message of `total` bytes
    0x04 MORE     bytes                        the next fragment; the message ends when `total` bytes have come
    0x05 DISCARD  none                         the sender gave up the fragmented message: drop what came of it
    0x06 EOF      none                         half-close: no more messages from this side
    0x07 CLOSE    none                         no more messages from this side, and it reads no more; no error
    0x08 RESET    msgpack `code`, `message`,   the channel is over: a service is cancelled, a caller gets the error;
                  `not_run`, `application`,    `not_run`, from the service's side, where the service certainly did not
                  `details`, `metadata`        begin and will not; without it, it may have run; the rest see below
    0x09 CREDIT   u32 bytes                    the receiver of messages grants this much more
    0x0A GOODBYE  msgpack `code`, `message`,   on channel 0: the connection is over, nothing follows; `last` is the
                  `last`                       highest channel of the other side's that was looked at, 0 if none was:
                                               those beyond did not run and will not
    0x0B PING     8 bytes                      on channel 0: answer with the same bytes in a PONG
    0x0C PONG     8 bytes                      on channel 0
    0x0D DRAIN    none                         on channel 0: open no more channels here; those that are open may end
    0x0E RETURN   u32 bytes                    the sender of messages gives back credit that it does not need
    0x0F SWITCH   none                         on channel 0: the last frame on this link, the next is on the new one
    0x10 RENEW    none                         on channel 0, from the acceptor: asks the dialer for a hand-over
    ==== ======== ============================ ======================================================================

    Fragments of different channels may interleave; those of one channel are in order, with only CREDIT, RESET and
    CLOSE of that channel between them.

    A channel is over for a side that sent or received CLOSE or RESET. What came before a CLOSE is still delivered.
    Frames for a channel that is over are ignored (they crossed with its end); frames for one that was never opened
    are a protocol error.

    Metadata is what a caller says beside its messages: a map of text (1 to 255 characters) to text or bytes, absent for
    none. It has at most 128 entries, no key twice, and encoded, the whole map, at most `max_metadata_size` bytes of the
    receiver's; more is a protocol error.

    Errors. The `code` of a RESET is one of this protocol's, or, with `application` true, one of the application's own:
    two vocabularies, in which the same text may mean different things. `details`, a plain value (null, boolean, number,
    text, bytes, lists, and maps from text), and `metadata`, as in OPEN, are what a service says besides. Details have
    at most 1000 values, nested 16 deep. Both together have at most `max_metadata_size` bytes of the receiver's. What is
    absent is empty or false.

    Credit. A message costs its length plus 64 (so that empty ones are not free), debited fragment by fragment, the
    64 with the first. A side MUST NOT send more than it has credit for. The receiver grants credit as its application
    consumes messages; of a message that has begun to arrive in fragments it grants the rest. A sender that gave up such
    a message (DISCARD) returns by RETURN what it then has, and is granted later, beyond the window. The receiver may
    grant more than the window at any time.

Ending
    A side that goes gracefully sends DRAIN, and a PING right behind it. The other side opens no more channels once it
    has read DRAIN, so the PONG tells the first side that it has read every OPEN there was. Up to the PONG it takes
    channels as ever, after it (or once it has waited long enough, some seconds) it refuses them by RESET with
    `not_run`. When its channels and services have ended, or it may wait no longer, it says GOODBYE. A side that ends
    the connection at once only says GOODBYE. Either way `last` tells the other side which of its requests may have
    run: those up to `last`, but for the ones that a RESET with `not_run` has come for. Without `last`, as from older
    releases, any may have run. An acceptor that has answered a hello, and waits for the confirmation no longer, says
    GOODBYE with `last` 0, as the dialer may have confirmed meanwhile.

Hand-over
    A connection can be moved to a new TLS session between the same two nodes. Only the side that dialled it begins one,
    and one at a time; the other side may ask for it with RENEW. The dialer opens a second link and says hello on it
    with `join`, a map: `connection` (16 bytes, exported from the connection's first TLS session under the label
    `EXPORTER-trionode-connection`), `attempt` (higher than in any `join` before for this connection), `proof` (see
    `_handshake.join`). All that a hello is checked for is checked again: names, incarnations and roles MUST be those of
    the connection, and what was verified before MUST be verified again. `limits` stay those of the connection. The
    acceptor's `join` is its own proof. A refusal, or a link that fails up to here, changes nothing.

    The dialer commits by sending SWITCH on the old link and, on the new one, its third message and every frame from
    then on. The acceptor commits when it has that third message: SWITCH on the old link, everything after it on the
    new one. A receiver parses nothing of the new link before it has read SWITCH on the old one, so frames stay in
    order. A side that has sent its SWITCH and read the other's sends close_notify on the old link; the other's
    close_notify tells it that its own SWITCH has arrived. From a side's commit until then, a failure of either link is
    a failure of the connection.

Compatibility
    The version that the hello settles on says what frames mean. Within a version maps may gain keys, and kinds from
    0x80 up may be added: a receiver ignores unknown kinds from 0x80 up, and refuses unknown kinds below.
"""

from .codec import (
    MAX_CODE as MAX_CODE,
    MAX_TEXT as MAX_TEXT,
    code as code,
    decode as decode,
    text as text,
)
from .details import decode_details as decode_details, encode_details as encode_details
from .frames import (
    CLOSE as CLOSE,
    CREDIT as CREDIT,
    DISCARD as DISCARD,
    DRAIN as DRAIN,
    EOF as EOF,
    FIRST as FIRST,
    GOODBYE as GOODBYE,
    LAST_CHANNEL as LAST_CHANNEL,
    MAX_FRAGMENT as MAX_FRAGMENT,
    MAX_PAYLOAD as MAX_PAYLOAD,
    MESSAGE as MESSAGE,
    MESSAGE_OVERHEAD as MESSAGE_OVERHEAD,
    MORE as MORE,
    OPEN as OPEN,
    PING as PING,
    PONG as PONG,
    RENEW as RENEW,
    RESET as RESET,
    RETURN as RETURN,
    SWITCH as SWITCH,
    End as End,
    FrameDecoder as FrameDecoder,
    Goodbye as Goodbye,
    Open as Open,
    control as control,
    credit as credit,
    first as first,
    header as header,
    unpack_u32 as unpack_u32,
)
from .hello import (
    ALPN as ALPN,
    MAX_HELLO as MAX_HELLO,
    VERSIONS as VERSIONS,
    Answer as Answer,
    Confirmation as Confirmation,
    Hello as Hello,
    HelloReader as HelloReader,
    Join as Join,
    Limits as Limits,
    Refusal as Refusal,
    encode_hello as encode_hello,
)
from .metadata import (
    ABSENT as ABSENT,
    MAX_METADATA as MAX_METADATA,
    decode_metadata as decode_metadata,
    encode_metadata as encode_metadata,
)
