"""Connections and what runs over them: channels, services, flow control, hand-over.

Begin with `core`, the life of the relation to one peer, and `state`, how far it has come; `connection` is what
applications see of it, `owner` what it knows of its node. `channels` are all that it has, `hand_over` is what a move to
another link does, `liveness` whether the peer is there, `closing` the ways to end it, `end` what follows from each
reason.

A message's way is `channel`, `send_half`, `send_queue`, `link`, and over there `core`, `channels`, `receive_half`,
`channel`. It waits for credit in `send_half`; when that is granted, `flow_control` and `reassembly` say.
"""
