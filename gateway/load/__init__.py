"""`attachgate load`: open-loop load of many live rooms, latency percentiles, and a check of the promise.

    options    what was asked, or every mistake in it          pure
    scenario   what clients do next, from a seed               pure
    judge      whether the promise was kept, from the journal  pure, independent of the gateway's code
    measure    counts and HDR histograms
    world      accounts and products: made, or read and sown
    client     keep-alive HTTP connections of the load
    drive      the schedule: each request starts when it is due, answers or not
    evidence   journal, lists and session views, fetched for the judge
    progress · report · page   the terminal, JSON, HTML
    command    one run from arguments to exit code

Only `options` is imported here: the other commands should not pay for what this one needs.
"""

from __future__ import annotations

import argparse

from gateway.load.options import add_arguments

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> int:
    """0 where the promise and every bound held, 1 where one was broken, 2 where there was nothing to test."""
    from gateway.load.command import run

    return run(args)
