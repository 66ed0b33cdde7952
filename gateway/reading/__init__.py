"""One reading of a request, from bytes to what was understood.

What is judged is what is forwarded: every module here turns a part of a request into a value, and the
upstream gets that value written anew, never the client's own spelling of it. Whatever two careful parsers
could read in two ways is refused. In the order in which a request is read: `headers`, `address`, `routes`,
`body`.

Pure: no sockets, no clock. For any input at all, only errors of `gateway.errors` leave this package.
"""
