"""What `attachgate load` was asked to do: arguments to one frozen struct, or every mistake at once. Pure."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.errors import ConfigurationError, Mistake

MAX_RATE: Final = 200_000.0
MAX_DURATION_SECONDS: Final = 86_400.0
MAX_ROOMS: Final = 1_000_000
MAX_CLIENTS_PER_ROOM: Final = 10_000
MAX_CONNECTIONS: Final = 20_000
MAX_TIMEOUT_SECONDS: Final = 600.0
MAX_RETRIES: Final = 20

_Wrong = Callable[[str, str], None]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")


class Operation(Enum):
    """What a client does. `create` has no weight of its own: it follows each end."""

    create = "create"
    attach_own = "attach_own"
    attach_foreign = "attach_foreign"
    attach_batch = "attach_batch"
    race = "race"
    detach = "detach"
    replace = "replace"
    start = "start"
    end = "end"
    list = "list"
    view = "view"


ATTACHES: Final = (Operation.attach_own, Operation.attach_foreign, Operation.attach_batch, Operation.race)

DEFAULT_MIX: Final = "attach_foreign=40,attach_own=25,attach_batch=8,race=2,detach=10,replace=6,list=6,start=2,end=1"


class Options(Struct, frozen=True):
    """One run. `rate` is in requests per second, over all targets; `connections` are per target."""

    targets: tuple[str, ...]
    platform: str | None
    data: str | None
    rooms: int
    rate: float
    duration_seconds: float
    clients_per_room: int
    zipf: float
    mix: dict[Operation, float]
    connections: int
    timeout_seconds: float
    retries: int
    seed: int
    identity_header: str
    cap: int
    sample: int
    settle_seconds: float
    max_p99_ms: float | None
    max_error_rate: float | None
    json: str | None
    html: str | None
    quiet: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `attachgate load`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Requests start on a schedule, whether or not earlier ones were answered, and latency counts from the time\n"
        "when a request should have started. Exit code: 0 the promise and the bounds held, 1 one was broken,\n"
        "2 wrong arguments or an unreachable target."
    )
    to = parser.add_argument_group("what is tested")
    to.add_argument("--target", action="append", required=True, metavar="URL", help="a gateway; repeat for several")
    to.add_argument("--platform", metavar="URL", help="the reference platform behind: sown by, and its journal judged")
    to.add_argument("--data", metavar="FILE", help="accounts and products as JSON Lines; needed without --platform")
    to.add_argument(
        "--identity-header", default="X-Account-Id", metavar="NAME", help="says the account (default: %(default)s)"
    )
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=float, default=200.0, help="requests started per second (default: %(default)g)")
    load.add_argument("--duration", type=float, default=10.0, metavar="SECONDS", help="default: %(default)g")
    load.add_argument("--rooms", type=int, default=100, help="live rooms at a time (default: %(default)s)")
    load.add_argument(
        "--clients-per-room", type=int, default=16, metavar="N", help="who race for places (default: %(default)s)"
    )
    load.add_argument(
        "--zipf",
        type=float,
        default=1.0,
        metavar="S",
        help="popularity of the k-th room is 1/k^S (default: %(default)g)",
    )
    load.add_argument("--mix", default=DEFAULT_MIX, metavar="OP=WEIGHT,…", help="default: %(default)s; also: view")
    load.add_argument(
        "--connections", type=int, default=256, metavar="N", help="at most, to each target (default: %(default)s)"
    )
    load.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="of one request (default: %(default)g)"
    )
    load.add_argument(
        "--retries", type=int, default=2, metavar="N", help="after no answer, 429 or 5xx (default: %(default)s)"
    )
    load.add_argument("--seed", type=int, default=0, help="the same seed and answers give the same requests")
    bounds = parser.add_argument_group("what must hold")
    bounds.add_argument(
        "--cap",
        type=int,
        default=3,
        help="foreign products in a session of a non-professional shop (default: %(default)s)",
    )
    bounds.add_argument(
        "--sample",
        type=int,
        default=200,
        metavar="N",
        help="sessions whose slots are compared with the gateway's view (default: %(default)s)",
    )
    bounds.add_argument(
        "--settle-seconds",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="wait at most this long until nothing is in doubt (default: %(default)g)",
    )
    bounds.add_argument("--max-p99-ms", type=float, metavar="MS", help="p99 of all requests")
    bounds.add_argument(
        "--max-error-rate", type=float, metavar="SHARE", help="share of requests without an answer or with 5xx, 0 to 1"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help="write the report as JSON")
    out.add_argument("--html", metavar="FILE", help="write the report as one page with plots")
    out.add_argument("--quiet", action="store_true", help="print the verdict only")


def parse(args: argparse.Namespace) -> Options:
    """The options. Raises `ConfigurationError` with every mistake."""
    mistakes: list[Mistake] = []

    def wrong(option: str, problem: str) -> None:
        mistakes.append(Mistake("attachgate load", option, problem))

    def within(option: str, value: float | None, least: float, most: float) -> None:
        if value is not None and not least <= value <= most:
            wrong(option, f"is {value:g}, expected {least:g} to {most:g}")

    within("--rate", args.rate, 0.1, MAX_RATE)
    within("--duration", args.duration, 0.1, MAX_DURATION_SECONDS)
    within("--rooms", args.rooms, 1, MAX_ROOMS)
    within("--clients-per-room", args.clients_per_room, 1, MAX_CLIENTS_PER_ROOM)
    within("--zipf", args.zipf, 0, 10)
    within("--connections", args.connections, 1, MAX_CONNECTIONS)
    within("--timeout", args.timeout, 0.01, MAX_TIMEOUT_SECONDS)
    within("--retries", args.retries, 0, MAX_RETRIES)
    within("--cap", args.cap, 0, 1000)
    within("--sample", args.sample, 0, 100_000)
    within("--settle-seconds", args.settle_seconds, 0, 3600)
    within("--max-p99-ms", args.max_p99_ms, 0, MAX_TIMEOUT_SECONDS * 1000)
    within("--max-error-rate", args.max_error_rate, 0, 1)
    if not _TOKEN.fullmatch(args.identity_header):
        wrong("--identity-header", f"{args.identity_header!r} is no header name")
    if args.platform is None and args.data is None:
        wrong("--platform", "give the platform's address, or accounts and products with --data")
    targets = tuple(_url("--target", url, wrong) for url in args.target)
    platform = None if args.platform is None else _url("--platform", args.platform, wrong)
    for option, file in (("--json", args.json), ("--html", args.html)):
        if file is not None and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
            wrong(option, f"{file} can't be written: its folder does not exist, or it is a folder itself")
    mix = _mix(args.mix, wrong)
    if mistakes:
        raise ConfigurationError(mistakes)
    return Options(
        targets=targets,
        platform=platform,
        data=args.data,
        rooms=args.rooms,
        rate=args.rate,
        duration_seconds=args.duration,
        clients_per_room=args.clients_per_room,
        zipf=args.zipf,
        mix=mix,
        connections=args.connections,
        timeout_seconds=args.timeout,
        retries=args.retries,
        seed=args.seed,
        identity_header=args.identity_header,
        cap=args.cap,
        sample=args.sample,
        settle_seconds=args.settle_seconds,
        max_p99_ms=args.max_p99_ms,
        max_error_rate=args.max_error_rate,
        json=args.json,
        html=args.html,
        quiet=args.quiet,
    )


def _url(option: str, text: str, wrong: _Wrong) -> str:
    """Scheme, host and port without a slash at the end."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    except ValueError:
        usable = plain = False
    if not (usable and plain and text.isascii()):
        wrong(option, f"{text!r} is not an address such as http://127.0.0.1:8080")
    return text.rstrip("/")


def _mix(text: str, wrong: _Wrong) -> dict[Operation, float]:
    mix: dict[Operation, float] = {}
    known = [operation.value for operation in Operation if operation is not Operation.create]
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if name not in known:
            wrong("--mix", f"{name!r} is no operation; there are {', '.join(known)}")
        elif not 0 <= weight <= 1e9:
            wrong("--mix", f"{part.strip()!r}: expected {name}=WEIGHT, a number from 0 on")
        elif Operation(name) in mix:
            wrong("--mix", f"{name} stands there twice")
        else:
            mix[Operation(name)] = weight
    if mix and not any(mix.get(operation, 0) for operation in ATTACHES):
        wrong("--mix", f"attaches nothing: give one of {', '.join(op.value for op in ATTACHES)} a weight")
    return mix
