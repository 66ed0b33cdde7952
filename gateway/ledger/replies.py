"""What an error reply of Redis means for a ledger step: what to do about it, and what to tell.

A table, and pure. Every reply in it says that the step was not run, so whatever the remedy is, doing it again is safe.
Redis before 7 wraps an error inside a script in a sentence of its own; `code_of` finds it there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError

from gateway.errors import LedgerUnavailable
from gateway.ledger import tls


class LostAnswer(LedgerUnavailable):
    """The connection broke: the script may have run. Whoever may repeat it does."""


class Remedy(Enum):
    """What is done before the step is refused."""

    none = "none"
    away = "none; the server counts as away"
    whole = "send the script's text, which this server does not know by its hash"
    follow = "ask the server that it names, and learn the cluster's map anew"
    ask = "ask the server that it names, this once"
    pause = "ask again in a moment"
    rescan = "learn the cluster's map anew and ask again in a moment"
    reconnect = "this is no master any more: find out who is, and ask there"


@dataclass(frozen=True)
class Meaning:
    remedy: Remedy
    detail: str


_MOVING = "The session's part of the Redis Cluster is being moved, and was not there in time; it will be shortly."
_NOT_CLUSTER = "Redis at ledger.url belongs to a Cluster; write the address as redis+cluster://host:port."
_NO_MASTER = (
    "No sentinel in ledger.url knows a master of that name; see `SENTINEL MASTERS` there, and the log for the cause."
)
_DENIED = (
    "Redis denies the user in ledger.url a command or key that the ledger needs; deploy/gateway.toml has its rule."
)
_LOGIN = "Redis refuses the user or password in ledger.url; correct it there, or in Redis' ACL."

MEANINGS = {
    "MOVED": Meaning(Remedy.follow, _MOVING),
    "ASK": Meaning(Remedy.ask, _MOVING),
    "TRYAGAIN": Meaning(Remedy.pause, _MOVING),
    "CLUSTERDOWN": Meaning(
        Remedy.rescan,
        "The Redis Cluster serves no writes now: a master is missing; see `CLUSTER INFO` and its replicas.",
    ),
    "READONLY": Meaning(
        Remedy.reconnect,
        "Redis at ledger.url is a replica, which can't write; point ledger.url at the master, Sentinel or the Cluster.",
    ),
    "MASTERDOWN": Meaning(
        Remedy.reconnect,
        "Redis at ledger.url is a replica that has lost its master; see to its failover.",
    ),
    "UNBLOCKED": Meaning(Remedy.reconnect, "Redis at ledger.url became a replica meanwhile; see to its failover."),
    "NOSCRIPT": Meaning(
        Remedy.whole, "Redis forgets the ledger's scripts as soon as it has them; see who flushes them."
    ),
    "LOADING": Meaning(Remedy.away, "Redis is loading its data after a start; it serves the ledger once it has them."),
    "BUSY": Meaning(
        Remedy.away,
        "Redis is held up by a long script, not one of the ledger's; it ends by itself, or by `SCRIPT KILL`.",
    ),
    "MAXCLIENTS": Meaning(Remedy.away, "Redis takes no more clients; raise its maxclients, or see who holds them."),
    "OOM": Meaning(
        Remedy.none, "Redis has no memory left for the ledger; raise its maxmemory, or give the ledger one of its own."
    ),
    "MISCONF": Meaning(
        Remedy.none,
        "Redis takes no writes, since it can't save them; see its log, its disk and the rights on its folder.",
    ),
    "NOREPLICAS": Meaning(
        Remedy.none,
        "Redis takes no writes, since fewer replicas follow it than its min-replicas-to-write; see to them.",
    ),
    "NOAUTH": Meaning(Remedy.none, "Redis asks for a password: put it into ledger.url."),
    "WRONGPASS": Meaning(Remedy.none, _LOGIN),
    "NOPERM": Meaning(Remedy.none, _DENIED),
    "NOCLUSTER": Meaning(Remedy.none, "Redis at ledger.url is no Cluster; write the address as redis://host:port."),
}

_IN_SCRIPT = re.compile(r"^(?:ERR )?Error running script .*?-([A-Z]{3,}) ", re.DOTALL)
_DENIED_IN_SCRIPT = re.compile(r"ACL failure in script|The user executing the script can't")
_NO_LOGIN = re.compile(r"invalid (?:username-)?password|called without any password", re.IGNORECASE)

_WITHOUT_CODE = {
    "cluster support disabled": "NOCLUSTER",
    "max number of clients": "MAXCLIENTS",
    "WAIT cannot be used with replica": "READONLY",
}


def code_of(error: Exception) -> str:
    """The code of an error reply: MOVED, READONLY, …, or the first word of one that has none."""
    text = str(error)
    if inner := _IN_SCRIPT.match(text):
        return inner[1]
    if _DENIED_IN_SCRIPT.search(text):
        return "NOPERM"
    if _NO_LOGIN.search(text):
        return "WRONGPASS"
    for part, code in _WITHOUT_CODE.items():
        if part in text:
            return code
    given = getattr(error, "status_code", None)
    return given if isinstance(given, str) and given != "ERR" else text.partition(" ")[0]


def meaning_of(error: Exception, *, cluster: bool) -> Meaning | None:
    """What an error reply means; None for one that no server in order gives to a ledger step."""
    code = code_of(error)
    if not cluster and code in ("MOVED", "ASK", "CLUSTERDOWN"):
        return Meaning(Remedy.none, _NOT_CLUSTER)
    return MEANINGS.get(code)


def refused(error: Exception, meaning: Meaning | None) -> LedgerUnavailable:
    """What the step's caller is told."""
    if meaning is not None:
        return LedgerUnavailable(meaning.detail)
    return LedgerUnavailable(f"Redis refused a ledger step: {str(error)[:200]}")


def reason_of(error: BaseException, *, cluster: bool = False) -> str | None:
    """What to tell of a failure to connect or to ask, where it says more than that nobody answers. The error that
    knows is often wrapped in others of redis-py's."""
    one: BaseException | None = error
    for _ in range(8):
        if one is None:
            break
        if isinstance(one, MasterNotFoundError):
            return _NO_MASTER
        if isinstance(one, RedisError) and (meaning := meaning_of(one, cluster=cluster)):
            return meaning.detail
        if problem := tls.problem_of(one):
            return problem
        one = one.__cause__ or one.__context__
    return None
