"""What about a Redis would break the promise, read from its own description. Pure."""

from __future__ import annotations

OLDEST = (6, 2)


def warnings(server: str, info: str, save: str | None, *, cluster: bool, replicas: int | None) -> list[str]:
    """Sentences for the operator. `info`: the reply to INFO. `save`: the setting, None where nobody may read it.
    `replicas`: how many must confirm a slot, None where none need to."""
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
    follow = int(facts.get("connected_slaves", replicas or 0))
    if replicas and master and follow != replicas:
        lost = (
            "no slot can be reserved; add some"
            if follow < replicas
            else f"a failover may lose slots; set it to {follow}"
        )
        found.append(f"has {follow} replicas, and ledger.replicas asks for {replicas}: {lost}")
    if not cluster and facts.get("cluster_enabled") == "1":
        found.append("belongs to a Cluster; write ledger.url as redis+cluster://host:port")
    return [f"Redis ({server}) {problem}." if cluster else f"Redis {problem}." for problem in found]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
