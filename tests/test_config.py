"""gateway.toml and the environment: what loads, and that every mistake in them is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.config import DEFAULT_ROUTES, Config, Ledger, Upstream, checks, ids, load, parse, tables
from gateway.errors import ConfigurationError, Mistake

HERE = Path(__file__).parent
BAD = sorted((HERE / "config" / "bad").glob("*.toml"))
SHIPPED = HERE.parent / "deploy" / "gateway.toml"
UPSTREAM = b'[upstream]\nurl = "http://127.0.0.1:9000"\n'
DEFAULTS = Config(Upstream("http://127.0.0.1:9000"))


def mistakes(data: bytes, environ: dict[str, str] | None = None) -> list[Mistake]:
    with pytest.raises(ConfigurationError) as raised:
        parse(data, "gateway.toml", environ or {})
    return raised.value.mistakes


def uncommented(text: str) -> str:
    """A shipped file with its examples in force: a # without a space after it is taken away."""
    return re.sub(r"(?m)^#(?=[^ #\n])", "", text)


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_each_mistake_is_named_with_its_key_and_what_was_expected(file: Path) -> None:
    key, _, fragment = file.read_text().partition("\n")[0].removeprefix("# ").partition(" | ")
    (found,) = mistakes(file.read_bytes())
    assert found.key == ("" if key == "(file)" else key)
    assert fragment in found.problem
    assert "hunt" not in str(found)


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    found = mistakes((HERE / "config" / "many_mistakes.toml").read_bytes())
    assert [mistake.key for mistake in found] == [
        "lisen",
        "upstream.url",
        "listen.drain_second",
        "listen.port",
        "routes[0].already_there[1]",
        "routes[1].operation",
        "listen.admin_host",
        "listen.client_prefix",
        "directory.product_path",
        "ledger.url",
        "ledger.hold_seconds",
        "identity.algorithms[0]",
        "identity.algorithms",
        "identity.jwks",
        "identity.issuer",
        "identity.audience",
        "limits.id_pattern",
        "routes[0].method",
        "routes[0].path",
        "routes[0].product_ids[1]",
        "routes[0].already_there[0]",
    ]
    assert "hunter2" not in str(ConfigurationError(found))


def test_there_are_not_too_many_routes() -> None:
    route = b'[[routes]]\noperation = "create"\nmethod = "POST"\npath = "/live"\n'
    (found,) = mistakes(UPSTREAM + route * 257)
    assert (found.key, found.problem) == ("routes", "expected at most 256, got 257")


def test_only_the_upstreams_address_is_needed() -> None:
    config = parse(UPSTREAM, "gateway.toml", {})
    assert config == DEFAULTS
    assert config.routes == DEFAULT_ROUTES


def test_the_shipped_file_says_every_key_with_its_default() -> None:
    text = SHIPPED.read_text()
    assert parse(text.encode(), "gateway.toml", {}) == DEFAULTS
    assert parse(uncommented(text).encode(), "gateway.toml", {}) == DEFAULTS
    for section in msgspec.structs.fields(Config):
        kind: Any = msgspec.structs.fields(section.type) if section.name != "routes" else []
        for field in kind:
            form = rf"^\[{section.name}\.{field.name}\]$" if field.name.endswith("tls") else rf"^#?{field.name} = "
            assert re.search(f"(?m){form}", text), f"{section.name}.{field.name} is not in the file"
    for name in DEFAULT_ROUTES[0].__struct_fields__:
        assert re.search(rf"(?m)^#{name} = ", text), f"routes[…].{name} is not in the file"


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "redis://cache",
        "redis://user:p%23ss@cache:6379/2",
        "rediss://[::1]:6380?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock",
        "redis+sentinel://:secret@a:26379,b/mymaster",
        "redis+cluster://a:6379,b:6379?tls=true",
        "redis+sentinel://a:26379/mymaster?tls=true&ssl_ca_certs=/etc/ca.pem&sentinel_username=u&sentinel_password=p",
        "unix:///run/redis.sock?db=2&username=u&password=p",
    ],
)
def test_each_form_of_the_ledgers_address_loads(url: str) -> None:
    assert parse(UPSTREAM + f'[ledger]\nurl = "{url}"\n'.encode(), "f", {}).ledger == Ledger(url)


def test_a_signed_token_loads_with_all_that_it_needs() -> None:
    identity = 'mode = "jwt"\nissuer = "i"\naudience = "a"\nalgorithms = ["ES256", "EdDSA"]\njwks = "keys/jwks.json"\n'
    assert parse(UPSTREAM + f"[identity]\n{identity}".encode(), "f", {}).identity.jwks == "keys/jwks.json"


class TestEnvironment:
    def test_a_variable_wins_over_the_file(self) -> None:
        data = UPSTREAM + b"[listen]\nport = 1\n"
        assert parse(data, "f", {"ATTACHGATE_LISTEN__PORT": "9001"}).listen.port == 9001

    def test_a_variable_is_read_as_the_type_of_its_key(self) -> None:
        config = parse(
            b"",
            "f",
            {
                "ATTACHGATE_UPSTREAM__URL": "http://attach:9000",
                "ATTACHGATE_LISTEN__DRAIN_SECONDS": "0.5",
                "ATTACHGATE_LISTEN__DENY_UNMATCHED": "true",
                "ATTACHGATE_IDENTITY__TRUSTED_PEERS": "10.0.0.0/8, ::1/128",
                "ATTACHGATE_LEDGER__DURABILITY": "replicated",
            },
        )
        assert config.upstream.url == "http://attach:9000"
        assert config.listen.drain_seconds == 0.5
        assert config.listen.deny_unmatched is True
        assert config.identity.trusted_peers == ("10.0.0.0/8", "::1/128")
        assert config.ledger.durability == "replicated"

    @pytest.mark.parametrize(
        ("variable", "value", "key", "fragment"),
        [
            ("ATTACHGATE_LISTEN__PORT", "80a", "ATTACHGATE_LISTEN__PORT", 'got "80a"'),
            ("ATTACHGATE_LISTEN__PORT", "99999", "ATTACHGATE_LISTEN__PORT", "from 0 to 65535"),
            ("ATTACHGATE_LISTEN__PRT", "80", "ATTACHGATE_LISTEN__PRT", 'did you mean "ATTACHGATE_LISTEN__PORT"?'),
            ("ATTACHGATE_LISTEN_PORT", "80", "ATTACHGATE_LISTEN_PORT", 'did you mean "ATTACHGATE_LISTEN__PORT"?'),
            ("ATTACHGATE_X", "80", "ATTACHGATE_X", "ATTACHGATE_<SECTION>__<KEY>"),
            ("ATTACHGATE_ROUTES__0__PATH", "/", "ATTACHGATE_ROUTES__0__PATH", "put [[routes]] into the file"),
            ("ATTACHGATE_LEDGER__HOLD_SECONDS", "1", "ATTACHGATE_LEDGER__HOLD_SECONDS", "raise it"),
            ("ATTACHGATE_IDENTITY__TRUSTED_PEERS", "::1,x", "ATTACHGATE_IDENTITY__TRUSTED_PEERS[1]", 'got "x"'),
            ("ATTACHGATE_LEDGER__URL", "redis://:hunter2@h:x", "ATTACHGATE_LEDGER__URL", "ports from 1 to 65535"),
        ],
    )
    def test_a_wrong_variable_is_named_itself(self, variable: str, value: str, key: str, fragment: str) -> None:
        (found,) = mistakes(UPSTREAM, {variable: value})
        assert (found.file, found.key) == ("environment", key)
        assert fragment in found.problem
        assert "hunter2" not in str(found)

    def test_what_is_not_meant_for_the_configuration_is_left_alone(self) -> None:
        kubernetes = {
            "ATTACHGATE_SERVICE_HOST": "10.0.0.7",
            "ATTACHGATE_SERVICE_PORT_HTTP": "8080",
            "ATTACHGATE_PORT": "tcp://10.0.0.7:8080",
            "ATTACHGATE_PORT_8080_TCP_ADDR": "10.0.0.7",
            "ATTACHGATE_ADMIN_PORT_8081_TCP": "tcp://10.0.0.7:8081",
        }
        environ = {"ATTACHGATE_CONFIG": "/etc/gateway.toml", "PATH": "/bin", **kubernetes}
        assert parse(UPSTREAM, "f", environ) == DEFAULTS

    def test_a_port_that_an_operator_set_is_a_mistake_all_the_same(self) -> None:
        assert mistakes(UPSTREAM, {"ATTACHGATE_PORT": "9000"})[0].key == "ATTACHGATE_PORT"

    def test_a_variable_does_not_hide_that_its_section_is_no_table(self) -> None:
        assert mistakes(b"listen = 1\n" + UPSTREAM, {"ATTACHGATE_LISTEN__PORT": "1"})[0].key == "listen"

    def test_mistakes_of_file_and_environment_come_together(self) -> None:
        found = mistakes(b'[upstream]\nurl = ""\n[listen]\nport = -1\n', {"ATTACHGATE_LISTEN__PRT": "1"})
        assert {mistake.key for mistake in found} == {"ATTACHGATE_LISTEN__PRT", "listen.port", "upstream.url"}


class TestFiles:
    def test_files_are_relative_to_the_folder_of_the_configuration(self, tmp_path: Path) -> None:
        file = tmp_path / "gateway.toml"
        (tmp_path / "jwks.json").write_text('{"keys": []}')
        jwt = '[identity]\nmode = "jwt"\nissuer = "i"\naudience = "a"\nalgorithms = ["RS256"]\njwks = "jwks.json"\n'
        file.write_bytes(UPSTREAM + b'[policy]\nfile = "policy.toml"\n' + jwt.encode())
        config = load(file, {})
        assert config.policy.file == str(tmp_path / "policy.toml")
        assert config.identity.jwks == str(tmp_path / "jwks.json")

    def test_a_file_of_keys_that_is_not_there_is_a_mistake(self, tmp_path: Path) -> None:
        file = tmp_path / "gateway.toml"
        jwt = '[identity]\nmode = "jwt"\nissuer = "i"\naudience = "a"\nalgorithms = ["RS256"]\njwks = "jwks.json"\n'
        file.write_bytes(UPSTREAM + jwt.encode())
        with pytest.raises(ConfigurationError, match=r"identity\.jwks: there is no file .*jwks\.json"):
            load(file, {})

    @pytest.mark.parametrize(
        "data", [b"-----BEGIN PUBLIC KEY-----", b"[]", b'{"keys": {}}', b"\xff", b"[" * 100_000, b"{}"]
    )
    def test_a_file_that_is_no_set_of_keys_is_a_mistake(self, tmp_path: Path, data: bytes) -> None:
        file = tmp_path / "gateway.toml"
        jwt = '[identity]\nmode = "jwt"\nissuer = "i"\naudience = "a"\nalgorithms = ["RS256"]\njwks = "jwks.json"\n'
        file.write_bytes(UPSTREAM + jwt.encode())
        (tmp_path / "jwks.json").write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"identity\.jwks: .*jwks\.json is no set of keys"):
            load(file, {})

    def test_a_file_that_the_ledgers_address_names_must_be_there(self, tmp_path: Path) -> None:
        file = tmp_path / "gateway.toml"
        file.write_bytes(UPSTREAM + b'[ledger]\nurl = "rediss://u:secret@cache?ssl_ca_certs=/nowhere.pem"\n')
        said = r"ledger\.url: ssl_ca_certs: /nowhere\.pem: can't be read"
        with pytest.raises(ConfigurationError, match=said) as raised:
            load(file, {})
        assert "secret" not in str(raised.value)

    def test_a_file_that_can_not_be_read_is_one_mistake(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"nowhere\.toml: can't be read \(No such file"):
            load(tmp_path / "nowhere.toml", {})

    def test_a_byte_order_mark_is_none_of_it(self, tmp_path: Path) -> None:
        file = tmp_path / "gateway.toml"
        file.write_bytes(b"\xef\xbb\xbf" + UPSTREAM)
        marked = load(file, {})
        file.write_bytes(UPSTREAM)
        assert marked == load(file, {})

    @pytest.mark.parametrize(
        ("data", "fragment"),
        [
            (b"a = 1\nb = \xff", "not UTF-8 (at line 2)"),
            (b"a = " + b"[" * 9000, "nested too deeply"),
            (b"a = " + b"9" * 9000, "a number is too long"),
            (b"#" * (tables.MAX_FILE_BYTES + 1), "at most 1048576 are read"),
        ],
        ids=["encoding", "nesting", "number", "size"],
    )
    def test_what_is_not_toml_is_one_mistake(self, data: bytes, fragment: str) -> None:
        (found,) = mistakes(data)
        assert (found.key, fragment in found.problem) == ("", True)


KEYS = [(s.name, f.name) for s in msgspec.structs.fields(Config)[:-1] for f in msgspec.structs.fields(s.type)]
ROUTE_KEYS = DEFAULT_ROUTES[0].__struct_fields__
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["/", "", "{a}", "*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=4), st.dictionaries(st.sampled_from(ROUTE_KEYS), VALUES)
)
def test_whatever_stands_in_a_file_it_is_loaded_or_refused(values: list[Any], route: dict[str, Any]) -> None:
    document: dict[str, Any] = {"upstream": {"url": "http://h"}, "routes": [route]}
    for (section, key), value in values:
        document.setdefault(section, {})[key] = value
    findings = tables.Findings("f")
    config = tables.read(Config, document, findings)
    checks.check(config, findings)
    assert all(mistake.problem and "\n" not in str(mistake) for mistake in findings.mistakes)


ATOMS = st.sampled_from(
    [
        "a",
        "[A-Z0-9]",
        r"\.",
        r"\-",
        "[a-z_:.-]",
        "[0-z]",
        r"\d",
        ".",
        " ",
        "/",
        "%",
        "[ -~]",
        "[^a]",
        "é",
        r"[\w]",
        "[]a]",
    ]
)
REPEATS = st.sampled_from(["", "", "?", "{1,8}", "{3}", "{,4}", "*", "+", "{2,}", "+?"])
PATTERNS = st.recursive(
    st.tuples(ATOMS, REPEATS).map("".join),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})")
        | inner.map(lambda one: f"({one})?")
    ),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(PATTERNS, st.data())
@example("[A-Za-z0-9._:-]{1,128}", None)
def test_an_accepted_pattern_matches_only_what_is_harmless_in_a_key_or_path(pattern: str, data: Any) -> None:
    if ids.problem(pattern) is not None:
        return
    compiled = re.compile(pattern)
    assert not compiled.fullmatch("")
    assert not compiled.fullmatch("a" * (ids.MAX_ID_LENGTH + 1))
    if data is not None:
        text = data.draw(st.from_regex(compiled, fullmatch=True))
        assert text.isascii()
        assert 0 < len(text) <= ids.MAX_ID_LENGTH
        assert ids.FORBIDDEN.isdisjoint(text)


@pytest.mark.parametrize(
    "pattern", [r"[A-Za-z0-9._:-]{1,128}", r"[0-9]{1,20}", r"(?:live|room)-[0-9a-f]{8}", r"p\.[a-z]"]
)
def test_ordinary_patterns_for_ids_are_accepted(pattern: str) -> None:
    assert ids.problem(pattern) is None


@pytest.mark.parametrize("pattern", ["[[a]", "a{99999999999}", "(" * 5000, "[a||b]"])
def test_a_pattern_that_python_refuses_or_doubts_is_refused(pattern: str) -> None:
    assert "not a regular expression" in str(ids.problem(pattern))
