"""What about a Redis would break the promise, read from its own description. Pure."""

from __future__ import annotations

OLDEST = (6, 2)


def warnings(server: str, info: str, save: str | None, *, cluster: bool, replicated: bool) -> list[str]:
    """Sentences for the operator. `info`: the reply to INFO. `save`: the setting, None where nobody may read it."""
    facts = dict(line.partition(":")[::2] for line in info.splitlines() if ":" in line)
    found = []
    version = facts.get("redis_version", "")
    if version and _version(version) < OLDEST:
        found.append(f"is version {version}; the ledger needs Redis 6.2 or newer, or Valkey")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(f"has maxmemory-policy {policy}: it may throw sessions away; set it to noeviction")
    if facts.get("aof_enabled") == "0" and save == "":
        found.append("saves nothing to disk: a restart forgets every session; set appendonly yes, or save")
    master = facts.get("role", "master") == "master"
    if not master:
        found.append("is a replica, which can't write; point ledger.url at the master, Sentinel or the Cluster")
    if replicated and master and facts.get("connected_slaves") == "0":
        found.append('has no replica, and ledger.durability is "replicated": no slot can be reserved; attach one')
    if not cluster and facts.get("cluster_enabled") == "1":
        found.append("belongs to a Cluster; write ledger.url as redis+cluster://host:port")
    return [f"Redis ({server}) {problem}." if cluster else f"Redis {problem}." for problem in found]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
