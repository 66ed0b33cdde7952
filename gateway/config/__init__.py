"""gateway.toml: what may stand in it (`structs`), how it and the environment become a `Config` or a list of
mistakes (`loader`, on `tables`), and what must hold besides types (`checks`, `routes`, `ids`).

Pure but for `load`, which reads the file. Knows nothing of the policy: `gateway.settings` loads both.
"""

from gateway.config.loader import load, parse
from gateway.config.structs import (
    DEFAULT_ROUTES,
    ClientTls,
    Config,
    Directory,
    Identity,
    Journal,
    Ledger,
    Limits,
    Listen,
    Operation,
    PolicyFile,
    Port,
    Route,
    Seconds,
    ServerTls,
    Upstream,
)

__all__ = [
    "DEFAULT_ROUTES",
    "ClientTls",
    "Config",
    "Directory",
    "Identity",
    "Journal",
    "Ledger",
    "Limits",
    "Listen",
    "Operation",
    "PolicyFile",
    "Port",
    "Route",
    "Seconds",
    "ServerTls",
    "Upstream",
    "load",
    "parse",
]
