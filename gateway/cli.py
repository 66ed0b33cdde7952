"""The command line: arguments, and which part of the gateway answers them.

Exit codes: 0 well, 1 failed, 2 wrong input.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path

from gateway import __version__

MAX_WORKERS = 256
"""Processes: far more than one machine has cores for, and far fewer than would bring it down."""


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="attachgate",
        description="Keeps each live session's count of foreign products right, in front of a product-attach API.",
    )
    root.add_argument("--version", action="version", version=f"attachgate {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="play the notice's story through a real gateway, on an embedded Redis")
    demo.add_argument("--port", type=int, default=8080, help="the gateway's port (default: 8080)")
    demo.add_argument("--once", action="store_true", help="end after the story; 0 where all went as expected")

    serve = commands.add_parser("serve", help="run the gateway")
    _config(serve)
    serve.add_argument(
        "--workers", type=_whole(1, MAX_WORKERS), default=1, help="processes that share the port (default: 1)"
    )
    serve.add_argument("--worker", type=Path, metavar="SOCKET", help=argparse.SUPPRESS)

    platform = commands.add_parser("platform", help="run the reference platform: a product-attach API kept in memory")
    platform.add_argument("--host", default="127.0.0.1")
    platform.add_argument("--port", type=_whole(0, 65_535), default=9000, help="0 takes a free one (default: 9000)")
    platform.add_argument("--data", type=Path, help="accounts and products, JSON Lines")
    platform.add_argument(
        "--latency", type=_number(0, 3_600_000), default=0.0, metavar="MS", help="added to each answer"
    )
    platform.add_argument("--fault-rate", type=float, default=0.0, help="share of calls that fail, 0 to 1")
    platform.add_argument("--fault-mode", default="error", help="how they fail (default: error)")
    platform.add_argument("--seed", type=int, default=0, help="makes the faults repeatable")

    check = commands.add_parser("check", help="say every mistake in configuration and policy")
    _config(check)

    explain = commands.add_parser("explain", help="the verdict on one attach, its rule, and what the merchant can do")
    _config(explain)
    explain.add_argument("--account", required=True)
    explain.add_argument("--product", required=True)
    explain.add_argument("--surface", required=True, choices=("live_room", "showcase", "short_video"))
    explain.add_argument("--session", help="count what this live session has used")
    explain.add_argument("--at", metavar="TIME", help="RFC 3339 with zone; default: now")
    explain.add_argument("--language", choices=("zh-CN", "zh-Hant", "en"), default="en")
    explain.add_argument("--json", action="store_true")

    journal = commands.add_parser("journal", help="write the decision journal down, from Redis to JSON Lines")
    _config(journal)
    journal.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    journal.add_argument("--group", type=_name, default="export", help="who shares the work (default: export)")
    when = journal.add_mutually_exclusive_group()
    when.add_argument("--follow", action="store_true", help="go on until SIGTERM (the default)")
    when.add_argument("--once", action="store_true", help="end when all that is there is written")
    journal.add_argument(
        "--rotate-bytes",
        type=_whole(1, 2**63),
        default=268_435_456,
        metavar="N",
        help="begin a new file (default: 256 MiB)",
    )
    journal.add_argument("--keep", type=_whole(1, 1_000_000), metavar="N", help="full files that stay (default: all)")
    journal.add_argument(
        "--claim-seconds",
        type=_number(0, 86_400),
        default=30.0,
        metavar="S",
        help="how long an exporter may take to write what it has read, before another one does (default: 30)",
    )

    load = commands.add_parser("load", help="drive a gateway with open-loop load, and check the promise")
    from gateway.load import add_arguments

    add_arguments(load)
    return root


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, required=True, metavar="FILE", help="gateway.toml")


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"expected a number from {least:g} to {most:g}, got {text!r}")
        return number

    return read


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise argparse.ArgumentTypeError("1 to 64 of the characters A-Z a-z 0-9 _ . -")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "demo":
            from gateway.demo import story

            return story.run(port=arguments.port, once=arguments.once)
        case "platform":
            from gateway.demo import platform

            return platform.run(
                host=arguments.host,
                port=arguments.port,
                data=arguments.data,
                latency_ms=arguments.latency,
                fault_rate=arguments.fault_rate,
                fault_mode=arguments.fault_mode,
                seed=arguments.seed,
            )
        case "load":
            from gateway import load

            return load.run(arguments)
        case _:
            from gateway import commands

            return commands.run(arguments, os.environ)


if __name__ == "__main__":
    sys.exit(main())
