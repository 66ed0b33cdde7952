"""Both files that an operator writes, gateway.toml and the policy that it names, with the mistakes of both at
once.

The edge for `serve`, `check` and `explain`: it reads files; what stands in them is judged by `config` and
`policy.document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from gateway import tls
from gateway.config import Config, loader
from gateway.errors import ConfigurationError, Mistake
from gateway.policy import document
from gateway.policy.model import Policy
from gateway.reading.body import BodyReader
from gateway.reading.routes import Matcher


def load_all(path: Path, environ: Mapping[str, str]) -> tuple[Config, Policy]:
    """The configuration in the file and its policy: `policy.file`, relative to the file's folder, or the
    notice as shipped. Raises ConfigurationError with every mistake in both.

    A policy can't be looked for where gateway.toml can't be read, or where `policy.file` itself is wrong.
    """
    config, mistakes = loader.read(path, environ)
    policy = None
    if config is not None and not any(mistake.key == "policy.file" for mistake in mistakes):
        policy, more = _examine_policy(config.policy.file, str(path))
        mistakes = mistakes + more
    if config is not None and not mistakes:
        mistakes = _unreadable_routes(config, str(path)) + tls.mistakes(config, str(path))
    if config is None or policy is None or mistakes:
        raise ConfigurationError(mistakes)
    return config, policy


def _unreadable_routes(config: Config, file: str) -> list[Mistake]:
    """What only shows where the routes are made ready to read requests by."""
    mistakes: list[Mistake] = []
    for reader in (Matcher, BodyReader):
        try:
            reader(config.routes, config.limits, file=file)
        except ConfigurationError as error:
            mistakes += error.mistakes
    return mistakes


def load_policy(file: str = "") -> Policy:
    """The policy in a file, or the notice as shipped. Raises ConfigurationError."""
    policy, mistakes = _examine_policy(file)
    if policy is None:
        raise ConfigurationError(mistakes)
    return policy


def _examine_policy(file: str, named_in: str = "") -> tuple[Policy | None, list[Mistake]]:
    if not file:
        notice = resources.files("gateway.policy") / "notice.toml"
        return document.examine(notice.read_bytes(), str(notice))
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        unreadable = loader.unreadable(path, error)
        return None, [Mistake(named_in, "policy.file", str(unreadable)) if named_in else unreadable]
    return document.examine(data, file)
