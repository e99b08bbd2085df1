"""Connections and what runs over them: channels, services, flow control, hand-over.

Begin with `connection`, the life of the relation to one peer; `channels` are all that it has, `hand_over` is what a
move to another link does, `liveness` whether the peer is there, `end` what follows from each reason to end. A message's
way is `channel`, `flow_control`, `send_queue`, `link`.
"""
