"""Connections and what runs over them: channels, services, flow control, hand-over.

Begin with `connection`, the life of the relation to one peer; a message's way is `channel`, `flow_control`,
`send_queue`, `link`.
"""
