"""gateway.toml and policy.toml together."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.settings import load_all, load_policy

HERE = Path(__file__).parent
UPSTREAM = '[upstream]\nurl = "http://127.0.0.1:9000"\n'


def test_without_a_policy_file_the_notice_holds_as_shipped(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(UPSTREAM)
    config, policy = load_all(file, {})
    assert config.policy.file == ""
    assert policy == load_policy()
    assert policy.versions[0].id == "2026-07"


def test_the_shipped_notice_is_the_file_in_deploy() -> None:
    assert load_policy() == load_policy(str(HERE.parent / "deploy" / "policy.toml"))


def test_the_policy_lies_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(UPSTREAM + '[policy]\nfile = "rules.toml"\n')
    text = (HERE.parent / "deploy" / "policy.toml").read_text()
    (tmp_path / "rules.toml").write_text(text.replace('id = "2026-07"', 'id = "ours"'))
    _, policy = load_all(tmp_path / "gateway.toml", {})
    assert policy.versions[0].id == "ours"


def test_mistakes_of_both_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(UPSTREAM + '[listen]\nport = "x"\n[policy]\nfile = "rules.toml"\n')
    (tmp_path / "rules.toml").write_text("versions = 1\n")
    with pytest.raises(ConfigurationError) as raised:
        load_all(tmp_path / "gateway.toml", {})
    found = [(Path(mistake.file).name, mistake.key) for mistake in raised.value.mistakes]
    assert found == [("gateway.toml", "listen.port"), ("rules.toml", "versions")]


def test_a_policy_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(UPSTREAM + '[policy]\nfile = "rules.toml"\n')
    with pytest.raises(ConfigurationError, match=r"gateway\.toml: policy\.file: .*rules\.toml: can't be read"):
        load_all(tmp_path / "gateway.toml", {})


def test_where_the_policy_is_can_be_said_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(UPSTREAM)
    with pytest.raises(ConfigurationError, match=r"other\.toml: can't be read"):
        load_all(tmp_path / "gateway.toml", {"ATTACHGATE_POLICY__FILE": "other.toml"})


def test_a_configuration_that_is_not_toml_is_told_alone(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text("upstream")
    with pytest.raises(ConfigurationError) as raised:
        load_all(tmp_path / "gateway.toml", {})
    assert len(raised.value.mistakes) == 1


def test_a_policy_with_mistakes_is_refused_when_loaded_alone() -> None:
    with pytest.raises(ConfigurationError, match=r"versions\[0\]\.rules"):
        load_policy(str(HERE / "policy" / "bad" / "hole.toml"))
