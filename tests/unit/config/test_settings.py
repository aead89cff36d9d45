"""Settings: order of sources, every error names the key, where it came from and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.config.settings import key_paths, load, parse_labels


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def refused(text: str, file: Path | None = None, environ: dict[str, str] | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {}, **overrides)
    assert text in str(caught.value)
    return str(caught.value)


def test_works_without_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("awsomefsd.config.settings.DEFAULT_FILES", (tmp_path / "awsomefsd.toml",))
    settings = load(environ={})
    assert settings.state_dir == Path("/var/lib/awsomefsd") and settings.run_dir == Path("/run/awsomefsd")
    assert settings.admin_socket == Path("/run/awsomefsd/admin.sock") and settings.metrics.listen == ""


def test_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, "a.toml", "state_dir = '/file'\nrun_dir = '/file'\nsite = 1\n[memory]\nworker = '1G'\n")
    environ = {"AWSOMEFSD_STATE_DIR": "/environment", "AWSOMEFSD_RUN_DIR": "/environment"}
    settings = load(file, environ, state_dir="/command", run_dir=None)
    assert (str(settings.state_dir), str(settings.run_dir), settings.site) == ("/command", "/environment", 1)
    assert settings.memory.worker == 1 << 30


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_yaml(tmp_path: Path, suffix: str) -> None:
    settings = load(write(tmp_path, f"a.{suffix}", "log:\n  level: debug\n  format: json\n"), {})
    assert (settings.log.level, settings.log.format) == ("debug", "json")
    assert load(write(tmp_path, f"empty.{suffix}", ""), {}).log.level == "info"


@pytest.mark.parametrize("name", ["AWSOMEFSD_LOG_LEVEL", "AWSOMEFSD_LOG__LEVEL"])
def test_nested_key_in_the_environment(name: str) -> None:
    assert load(environ={name: "debug"}).log.level == "debug"


def test_value_from_a_file_named_in_the_environment(tmp_path: Path) -> None:
    secret = write(tmp_path, "level", "warning\n")
    assert load(environ={"AWSOMEFSD_LOG_LEVEL_FILE": str(secret)}).log.level == "warning"
    refused("AWSOMEFSD_LOG_LEVEL_FILE", environ={"AWSOMEFSD_LOG_LEVEL_FILE": str(tmp_path / "none")})
    refused("both set log.level", environ={"AWSOMEFSD_LOG_LEVEL_FILE": str(secret), "AWSOMEFSD_LOG_LEVEL": "info"})


def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path, "a.toml", "statedir = '/x'\n[log]\nlvel = 'info'\n")
    message = refused("did you mean state_dir?", file)
    assert "log.lvel" in message and "did you mean log.level?" in message and str(file) in message
    refused("did you mean AWSOMEFSD_STATE_DIR?", environ={"AWSOMEFSD_STATEDIR": "/x"})


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("AWSOMEFSD_LOG_LEVEL", "loud", "log.level"),
        ("AWSOMEFSD_SITE", "x", "site"),
        ("AWSOMEFSD_SITE", "256", "site"),
        ("AWSOMEFSD_MEMORY_WORKER", "1 apple", "memory.worker"),
        ("AWSOMEFSD_MEMORY_WORKER", "1M", "memory.worker"),
        ("AWSOMEFSD_METRICS_LISTEN", "0.0.0.0:9310", "metrics.listen"),
        ("AWSOMEFSD_METRICS_LISTEN", "127.0.0.1", "metrics.listen"),
        ("AWSOMEFSD_UI_LISTEN", "localhost:7480", "ui.listen"),
        ("AWSOMEFSD_UI_LISTEN", "7480", "ui.listen"),
        ("AWSOMEFSD_UI_NAMES", "a.example, b:7480", "ui.names"),
        ("AWSOMEFSD_ADMIN_GROUP", "no-such-group-here", "admin_group"),
        ("AWSOMEFSD_MOUNT_OPTIONS", "noatime,nosiud", "mount.options"),
        ("AWSOMEFSD_MOUNT_OPTIONS", "consistency=bounded", "mount.options"),
    ],
)
def test_bad_values_name_key_and_variable(variable: str, value: str, key: str) -> None:
    message = refused(key, environ={variable: value})
    assert variable in message and value in message


@pytest.mark.parametrize(("key", "value", "port"), [("CLUSTER_LISTEN", "here", 7440), ("METADATA_LISTEN", "here", 7441)])
def test_the_example_of_an_address_has_the_port_that_is_the_default_there(key: str, value: str, port: int) -> None:
    message = refused(f'such as "10.0.0.1:{port}" or "[fd00::1]:{port}"', environ={f"AWSOMEFSD_{key}": value})
    section, _, name = key.lower().partition("_")
    assert f"{section}.{name} = " in message and getattr(getattr(load(environ={}), section), name) == f"0.0.0.0:{port}"


def test_the_example_of_a_voters_address_has_the_port_of_the_metadata() -> None:
    refused('such as "10.0.0.1:7441"', environ={"AWSOMEFSD_METADATA_VOTERS": "00000000-0000-4000-8000-000000000001=here"})


def test_mount_options_that_need_shared_may_be_the_default_of_a_node() -> None:
    given = "noatime, cache=none"
    assert load(environ={"AWSOMEFSD_MOUNT_OPTIONS": given}).mount.options == given


def test_metrics_are_public_only_by_their_own_switch() -> None:
    chosen = load(environ={"AWSOMEFSD_METRICS_LISTEN": "0.0.0.0:9310", "AWSOMEFSD_METRICS_PUBLIC": "true"}).metrics
    assert chosen.public and chosen.listen == "0.0.0.0:9310"
    refused("metrics.listen", environ={"AWSOMEFSD_METRICS_LISTEN": "example:9310", "AWSOMEFSD_METRICS_PUBLIC": "true"})


def test_the_web_page_is_off_and_has_names() -> None:
    assert load(environ={}).ui.listen == "" and load(environ={}).ui.hosts == []
    chosen = load(environ={"AWSOMEFSD_UI_LISTEN": "[::]:7480", "AWSOMEFSD_UI_NAMES": " a.example,b-1 ,"}).ui
    assert chosen.listen == "[::]:7480" and chosen.hosts == ["a.example", "b-1"]
    refused('such as "10.0.0.1:7480"', environ={"AWSOMEFSD_UI_LISTEN": "here"})


def test_variables_of_others_are_left_alone() -> None:
    others = {"AWSOMEFSD": "x", "AWSOMEFSD_SERVICE_HOST": "10.0.0.1", "AWSOMEFSD_PORT_80_TCP": "t", "AWSOMEFSD_SEED": "1", "HOME": "/"}
    assert load(environ=others) == load(environ={})


@pytest.mark.parametrize(
    ("name", "text"), [("a.toml", "x = ["), ("a.yaml", "- 1"), ("a.yaml", "a: [\n"), ("a.yaml", "3"), ("a.toml", "log = 'x'")]
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, text: str) -> None:
    refused("a." + name.partition(".")[2], write(tmp_path, name, text))


def test_file_must_exist_and_have_a_known_suffix(tmp_path: Path) -> None:
    refused("none.toml", tmp_path / "none.toml")
    refused("none.toml", environ={"AWSOMEFSD_CONFIG": str(tmp_path / "none.toml")})
    refused("rename it", write(tmp_path, "a.ini", ""))


def test_two_default_files_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple(write(tmp_path, name, "") for name in ("awsomefsd.toml", "awsomefsd.yaml"))
    monkeypatch.setattr("awsomefsd.config.settings.DEFAULT_FILES", files)
    refused("keep one of them")


def test_every_key_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "OPERATIONS.md").read_text()
    for path in key_paths():
        assert f"`{'.'.join(path)}`" in page, f"{'.'.join(path)} is missing in docs/OPERATIONS.md"


@pytest.mark.parametrize("text", ["~: 1\n", "? [a]\n: b\n", "a: " + "[" * 3_000, "log: {1: 2}\n", "1: {}\n"])
def test_a_yaml_file_of_the_wrong_shape_is_an_error_in_words(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert str(file) in str(caught.value)


def test_the_home_of_a_user_who_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("state_dir: ~nobody-of-this-name/x\n")
    with pytest.raises(ConfigError, match="~nobody-of-this-name: there is no such user"):
        load(file, {})


@pytest.mark.parametrize("text", ["", "here/state", 5])
def test_a_directory_that_depends_on_where_a_process_starts_is_refused(tmp_path: Path, text: object) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"state_dir: {text!r}\n")
    with pytest.raises(ConfigError, match=r"state_dir = .*c.yaml: .*write the absolute path of a directory$"):
        load(file, {})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("a.yaml", "- a\n- b\n", "it has keys and values"), ("a.toml", "log = 'x'", r"log is a section; .*\[log\]$")],
)
def test_a_file_of_the_wrong_shape_is_told_what_belongs_there(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, name, text))


def test_a_token_is_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("afs1-secretsecret\n")
    settings = load(environ={"AWSOMEFSD_TOKEN_FILE": str(tmp_path / "token")})
    assert settings.token.get_secret_value() == "afs1-secretsecret"
    assert "secretsecret" not in f"{settings} {settings!r} {settings.model_dump_json()}"
    for environ in ({"AWSOMEFSD_TOKEN": "afs1 secretsecret"}, {"AWSOMEFSD_TOKEN": "secretsecret" * 1_000}):
        with pytest.raises(ConfigError, match=r"AWSOMEFSD_TOKEN.*not a token") as caught:
            load(environ=environ)
        assert "secretsecret" not in str(caught.value)
    (tmp_path / "c.toml").write_text('token = ["secretsecret"]\n')
    with pytest.raises(ConfigError, match="token in") as caught:
        load(tmp_path / "c.toml", environ={})
    assert "secretsecret" not in str(caught.value)


@pytest.mark.parametrize("name", ["node..example", "a" * 64 + ".example", "node.", "-node"])
def test_a_name_that_no_host_can_have_is_not_advertised(name: str) -> None:
    with pytest.raises(ConfigError, match="advertise"):
        load(environ={"AWSOMEFSD_CLUSTER_ADVERTISE": name})


def test_the_cluster_section() -> None:
    chosen = load(environ={}).cluster
    assert (chosen.listen, chosen.voter_replace_after, chosen.discovery) == ("0.0.0.0:7440", 600, True)
    environ = {"AWSOMEFSD_CLUSTER_LISTEN": "", "AWSOMEFSD_CLUSTER_ADVERTISE": "[fd00::1]", "AWSOMEFSD_CLUSTER_VOTER_REPLACE_AFTER": "90s"}
    chosen = load(environ={**environ, "AWSOMEFSD_CLUSTER_LABELS": "zone=a, rack = 7"}).cluster
    assert (chosen.listen, chosen.advertise, chosen.voter_replace_after) == ("", "fd00::1", 90)
    assert parse_labels(chosen.labels) == {"zone": "a", "rack": "7"}
    for key, value in (
        ("LISTEN", "localhost"), ("ADVERTISE", "host:80"), ("ADVERTISE", "a b"), ("VOTER_REPLACE_AFTER", "soon"),
        ("VOTER_REPLACE_AFTER", "0s"),
        ("LABELS", "zone"), ("LABELS", "a=1,a=2"), ("LABELS", "a=" + "x" * 64), ("NAME", "two words"), ("DISCOVERY", "perhaps"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"cluster.{key.lower()}"):
            load(environ={f"AWSOMEFSD_CLUSTER_{key}": value})


def test_files_that_are_not_there_are_named_in_plain_words(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(ConfigError, match=f"cannot read {missing}: No such file or directory; correct --config"):
        load(missing, {})
    with pytest.raises(ConfigError) as refused:
        load(environ={"AWSOMEFSD_TOKEN_FILE": str(missing)})
    assert str(refused.value).startswith(f"AWSOMEFSD_TOKEN_FILE names {missing}, which cannot be read: No such file or directory; correct")
