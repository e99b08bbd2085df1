"""Connections and what runs over them: channels, services, flow control, hand-over.

Begin with `connection`, the life of the relation to one peer; `channels` are all that it has, `hand_over` is what a
move to another link does, `liveness` whether the peer is there, `end` what follows from each reason to end.

A message's way is `channel`, `send_half`, `send_queue`, `link`, and over there `channels`, `receive_half`, `channel`.
It waits for credit in `send_half`; when it is granted, `flow_control` and `reassembly` say.
"""
