"""gateway.toml and the environment to a `Config`, or to every mistake in them at once.

`ATTACHGATE_LISTEN__PORT=9000` stands for `listen.port = 9000` and wins over the file; lists are
comma-separated, and routes can only stand in the file. A variable with our prefix that sets nothing is a
mistake, since it was meant to. Not ours are `ATTACHGATE_CONFIG` (the path of the file) and what Kubernetes
and Docker set by themselves beside a service named attachgate, such as `ATTACHGATE_SERVICE_HOST`.

`parse` is pure; `read` and `load` are the edge that reads the file.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gateway.config import checks, routes, tables
from gateway.config.structs import ClientTls, Config, ServerTls
from gateway.config.tables import Findings
from gateway.errors import ConfigurationError, Mistake

PREFIX = "ATTACHGATE_"
SECRETS = frozenset({"upstream.url", "listen.admin_token", "ledger.url", "directory.url", "identity.jwks"})
_RESERVED = f"{PREFIX}CONFIG"
_INJECTED = re.compile(
    PREFIX + r"([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|NAME"
    r"|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|START|END))?)"
)
F = TypeVar("F", ServerTls, ClientTls)

_INJECTED_PORT = re.compile(r"(tcp|udp|sctp)://")


def parse(data: bytes, file: str, environ: Mapping[str, str]) -> Config:
    """The configuration in `data`. `file` is how messages call it. Raises ConfigurationError with all
    mistakes."""
    config, mistakes = examine(data, file, environ)
    if config is None or mistakes:
        raise ConfigurationError(mistakes)
    return config


def examine(data: bytes, file: str, environ: Mapping[str, str]) -> tuple[Config | None, list[Mistake]]:
    """A configuration and what is wrong with it; one with mistakes is fit only for finding more of them. None
    where the file is not TOML at all."""
    findings = Findings(file, SECRETS)
    document = tables.parse(data, findings)
    table = document if document is not None else {}
    _overlay(table, environ, findings)
    if document is None:
        return None, findings.mistakes
    config = tables.read(Config, table, findings)
    checks.check(config, findings)
    config = msgspec.structs.replace(config, routes=tuple(map(routes.completed, config.routes)))
    return config, findings.mistakes


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """The configuration in the file. Files that it names are relative to its folder. Raises
    ConfigurationError."""
    config, mistakes = read(path, environ)
    if config is None or mistakes:
        raise ConfigurationError(mistakes)
    return config


def read(path: Path, environ: Mapping[str, str]) -> tuple[Config | None, list[Mistake]]:
    """As `examine`, from a file; what it names is resolved, and a file of keys that can't be read as
    such is a mistake."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return None, [unreadable(path, error)]
    config, mistakes = examine(data, str(path), environ)
    if config is None:
        return None, mistakes
    config = _resolved(config, path.parent)
    jwks = config.identity.jwks
    is_file = config.identity.mode == "jwt" and jwks and "://" not in jwks
    if is_file and (problem := _keys_problem(Path(jwks))):
        mistakes.append(Mistake(str(path), "identity.jwks", problem))
    for name, file in checks.ledger_files(config.ledger.url).items():
        try:
            Path(file).open("rb").close()
        except OSError as error:
            mistakes.append(Mistake(str(path), "ledger.url", f"{name}: {unreadable(Path(file), error)}"))
    if config.listen.admin_token_file:
        config, problem = _with_token(config)
        if problem:
            mistakes.append(Mistake(str(path), "listen.admin_token_file", problem))
    return config, mistakes


def _with_token(config: Config) -> tuple[Config, str | None]:
    """The configuration with the token out of its file; or what is wrong with that."""
    file = Path(config.listen.admin_token_file)
    try:
        token = file.read_bytes()[: checks.MAX_TOKEN_CHARS + 2].decode("ascii", "replace").rstrip("\r\n")
    except OSError as error:
        return config, f"{file} can't be read ({error.strerror or type(error).__name__}); check the path and its rights"
    if problem := checks.token_problem(token):
        return config, f"in {file}: {problem}"
    return msgspec.structs.replace(config, listen=msgspec.structs.replace(config.listen, admin_token=token)), None


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


def _keys_problem(file: Path) -> str | None:
    """Why a file can't be a set of keys (RFC 7517), or None. Which of them are of use shows when they are loaded."""
    try:
        msgspec.json.decode(file.read_bytes(), type=_KeySet)
    except FileNotFoundError:
        return f"there is no file {file}; create it or correct the path"
    except OSError as error:
        return str(unreadable(file, error))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return f'{file} is no set of keys; expected JSON such as {{"keys": [{{"kty": "EC", …}}]}} (RFC 7517)'
    return None


def unreadable(path: Path, error: OSError) -> Mistake:
    return Mistake(
        str(path),
        "",
        f"can't be read ({error.strerror or type(error).__name__}); check the path and its rights",
    )


def _resolved(config: Config, folder: Path) -> Config:
    """The same configuration with the files that it names as seen from here, not from its own folder."""
    replace = msgspec.structs.replace
    if file := config.policy.file:
        config = replace(config, policy=replace(config.policy, file=str(folder / file)))
    if files := config.journal.files:
        config = replace(config, journal=replace(config.journal, files=str(Path(glob.escape(str(folder))) / files)))
    if file := config.listen.admin_token_file:
        config = replace(config, listen=replace(config.listen, admin_token_file=str(folder / file)))
    listen, upstream = config.listen, config.upstream
    listen = replace(listen, tls=_seen_from(folder, listen.tls), admin_tls=_seen_from(folder, listen.admin_tls))
    config = replace(config, listen=listen, upstream=replace(upstream, tls=_seen_from(folder, upstream.tls)))
    jwks = config.identity.jwks
    if jwks and "://" not in jwks:
        config = replace(config, identity=replace(config.identity, jwks=str(folder / jwks)))
    return config


def _seen_from(folder: Path, files: F) -> F:
    """The same table of files."""
    named = {name: str(folder / file) for name in files.__struct_fields__ if (file := getattr(files, name))}
    return msgspec.structs.replace(files, **named)


def _overlay(table: dict[str, Any], environ: Mapping[str, str], findings: Findings) -> None:
    """Put what the environment sets into the table of the file."""
    known = _variables()
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        if variable in known:
            (*sections, name), kind = known[variable]
            values: Any = table
            for section in sections:
                values = values.setdefault(section, {}) if isinstance(values, dict) else None
            if isinstance(values, dict):
                values[name] = tables.from_text(environ[variable], kind)
                findings.override(".".join((*sections, name)), variable)
        elif variable.startswith(f"{PREFIX}ROUTES"):
            findings.add_variable(variable, "routes can't be set from the environment; put [[routes]] into the file")
        elif variable != _RESERVED and not _is_injected(variable, environ[variable]):
            hint = tables.suggestion(variable, known, likeness=0.85) or "; names are ATTACHGATE_<SECTION>__<KEY>"
            findings.add_variable(variable, "sets nothing" + hint)


def _variables() -> dict[str, tuple[tuple[str, ...], Any]]:
    """Each variable that there is, with the path and the type of the key that it sets."""
    return {f"{PREFIX}{'__'.join(path)}".upper(): (path, kind) for path, kind in _keys(Config) if path[0] != "routes"}


def _keys(kind: type[msgspec.Struct], *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in msgspec.structs.fields(kind):
        path = (*above, field.name)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _keys(field.type, *path)
        else:
            yield path, field.type


def _is_injected(variable: str, value: str) -> bool:
    return bool(_INJECTED.fullmatch(variable) or (variable.endswith("_PORT") and _INJECTED_PORT.match(value)))
