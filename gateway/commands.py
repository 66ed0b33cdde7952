"""`serve`, `check`, `explain` and `journal`: what the command line asks of a configuration."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console

from gateway import explain as explaining
from gateway import settings
from gateway.admission.answers import slot_views
from gateway.admission.facts import check_owner
from gateway.config import Config
from gateway.directory import Directory
from gateway.errors import ConfigurationError, GatewayError, LedgerUnavailable
from gateway.export.exporter import export
from gateway.export.output import Output, RotatingFile, StandardOutput
from gateway.ledger.connection import connect
from gateway.ledger.lines import rfc3339
from gateway.ledger.steps import Ledger
from gateway.policy.evaluate import evaluate
from gateway.policy.model import Account, Policy, Session, Surface
from gateway.refusals import Language, SlotView
from gateway.serve import run as serve_until_stopped
from gateway.telemetry import configure_logging
from gateway.upstream.listing import list_products, lists
from gateway.upstream.lookups import Lookups
from gateway.workers import supervise

YEARS = range(1970, 2970)
"""That can be asked about: in any zone, a day before and behind is a date as well."""


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    path: Path = arguments.config
    if arguments.command == "check":
        return check(path, environ)
    if arguments.command == "explain":
        return explain(path, environ, arguments)
    if arguments.command == "journal":
        return journal(path, environ, arguments)
    if arguments.workers > 1:
        return serve_with_workers(path, environ, arguments.workers)
    return serve(path, environ, worker=arguments.worker)


def say_mistakes(error: ConfigurationError) -> int:
    for mistake in error.mistakes:
        print(mistake, file=sys.stderr)
    return 2


def check(path: Path, environ: Mapping[str, str]) -> int:
    """Says every mistake; 2 where there is one."""
    try:
        config, policy = settings.load_all(path, environ)
    except ConfigurationError as error:
        code = say_mistakes(error)
        print(f"{len(error.mistakes)} mistake{'s' if len(error.mistakes) > 1 else ''}.", file=sys.stderr)
        return code
    versions = ", ".join(version.id for version in policy.versions)
    print(f"{path}: right. {len(config.routes)} routes; policy versions: {versions}.")
    return 0


def serve(path: Path, environ: Mapping[str, str], *, worker: Path | None = None) -> int:
    """One gateway process, until it is told to stop; `worker`: the unix socket of its admin routes, where it is one of
    several."""
    configure_logging("info")
    try:
        import uvloop
    except ImportError:
        new_loop = None
    else:
        new_loop = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(serve_until_stopped(path, environ, worker=worker))
    except ConfigurationError as error:
        return say_mistakes(error)


def serve_with_workers(path: Path, environ: Mapping[str, str], workers: int) -> int:
    configure_logging("info")
    try:
        config, _ = settings.load_all(path, environ)
    except ConfigurationError as error:
        return say_mistakes(error)
    if config.listen.port == 0 or config.ledger.url == "embedded":
        print(
            f"{path}: --workers needs a fixed listen.port and a ledger.url that the workers share: "
            "name both, or run one worker.",
            file=sys.stderr,
        )
        return 2
    return asyncio.run(supervise(path, config, workers, environ))


def explain(path: Path, environ: Mapping[str, str], arguments: argparse.Namespace) -> int:
    """The verdict on one attach, asked of the same directory and ledger. 1 where they can't be asked."""
    configure_logging("warning")
    try:
        config, policy = settings.load_all(path, environ)
        now = _moment(arguments.at)
    except ConfigurationError as error:
        return say_mistakes(error)
    except ValueError as error:
        print(f"--at: {error}", file=sys.stderr)
        return 2
    try:
        explanation = asyncio.run(_explain(config, policy, arguments, now))
    except GatewayError as error:
        print(f"{error.reason}: {error.detail}", file=sys.stderr)
        return 1
    if arguments.json:
        print(explaining.to_json(explanation).decode())
    else:
        explaining.render(explanation, Console(width=None if sys.stdout.isatty() else 100))
    return 0


def journal(path: Path, environ: Mapping[str, str], arguments: argparse.Namespace) -> int:
    """Write the decision journal down. 1 where that failed; what was not written comes again."""
    configure_logging("info")
    try:
        config, _ = settings.load_all(path, environ)
    except ConfigurationError as error:
        return say_mistakes(error)
    if config.ledger.url == "embedded":
        print(f"{path}: ledger.url: an embedded Redis ends with its gateway; name one that stays.", file=sys.stderr)
        return 2
    output: Output
    try:
        file: Path | None = arguments.output
        output = RotatingFile(file, arguments.rotate_bytes, arguments.keep or 0) if file else StandardOutput()
    except OSError as error:
        print(f"--output: {arguments.output}: {error.strerror}", file=sys.stderr)
        return 2
    try:
        return asyncio.run(
            export(config, output, group=arguments.group, claim_seconds=arguments.claim_seconds, once=arguments.once)
        )
    finally:
        output.close()


def _moment(text: str | None) -> float:
    """Seconds since the epoch. Raises `ValueError` where the text is no RFC 3339 time with a zone."""
    if text is None:
        return time.time()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write it like 2026-07-15T20:00:00+08:00.") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no zone; write it like 2026-07-15T20:00:00+08:00.")
    if moment.year not in YEARS:
        raise ValueError(f"{text!r} is too far away; the years {YEARS[0]} to {YEARS[-1]} can be asked for.")
    return moment.timestamp()


async def _explain(config: Config, policy: Policy, arguments: argparse.Namespace, now: float) -> explaining.Explanation:
    surface, language = Surface(arguments.surface), _language(arguments.language)
    lookups = lists(config.upstream, time.monotonic)
    directory = Directory(config.directory, config.upstream, time.monotonic)
    try:
        account = await directory.account(arguments.account)
        product = await directory.product(arguments.product)
        session = await directory.session(arguments.session) if arguments.session else None
        if session is not None:
            check_owner(session, account.account_id)
        counted = session if surface is Surface.live_room else None
        snapshot = await _snapshot(lookups, config, account, counted) if counted is not None else None
    except GatewayError as error:
        if error.status >= 500:
            raise
        return explaining.explain_error(
            error,
            account_id=arguments.account,
            product_id=arguments.product,
            surface=surface,
            session_id=arguments.session,
            language=language,
            now=now,
        )
    finally:
        await directory.close()
        lookups.close()
    return explaining.explain(
        account=account,
        product=product,
        surface=surface,
        verdict=evaluate(policy, account, surface, now),
        snapshot=snapshot,
        language=language,
        now=now,
    )


async def _snapshot(lookups: Lookups, config: Config, account: Account, session: Session) -> explaining.Snapshot:
    """What the session has used; of one that the ledger does not know, what it will be opened with. Raises
    `LedgerUnavailable`, or what the upstream's list fails with."""
    if not account.recorded:
        return explaining.Snapshot(session.session_id, session.state, 0, ())
    if config.ledger.url == "embedded":
        raise LedgerUnavailable(
            f"An embedded ledger is its gateway's alone, so what session {session.session_id} has used can't be asked: "
            "leave --session out, or give the ledger a Redis that both reach."
        )
    connection = connect(config.ledger.url, max(1.0, config.ledger.timeout_seconds), time.monotonic)
    try:
        ledger = Ledger(connection, config.ledger, config.upstream.late_apply_seconds)
        found = await ledger.snapshot(session.session_id)
    finally:
        await connection.close()
    if found is None:
        listed = await list_products(lookups, config, session.session_id)
        now = rfc3339(int(time.time() * 1000))
        slots = tuple(SlotView(product.product_id, now, True) for product in listed if not account.owns(product))
        return explaining.Snapshot(session.session_id, session.state, len(slots), slots)
    return explaining.Snapshot(session.session_id, found.state, found.used, slot_views(found.slots))


def _language(text: str) -> Language:
    languages: dict[str, Language] = {"zh-CN": "zh-CN", "zh-Hant": "zh-Hant", "en": "en"}
    return languages[text]
