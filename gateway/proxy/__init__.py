"""The public port: what a client's bytes pass through on their way to the upstream and back.

Nothing here decides about the notice. The dispatcher tells matched routes from the rest; the rest is streamed
both ways, unread (`forward`, `websocket`), under the eye of a `watch`.
"""
