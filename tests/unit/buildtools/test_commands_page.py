"""docs/COMMANDS.md says what --help says, and its examples are commands that the program takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from awsomefsd.cli.main import COMMANDS, Invocation, cli
from buildtools import commands_page

_CONTEXT = click.Context(cli, info_name="awsomefsd")
_FOUND = {" ".join(words): command for words, command in commands_page.leaves(cli, _CONTEXT, ())}
_EXAMPLES = [(name, example) for name, pairs in commands_page.EXAMPLES.items() for _, example in pairs]


def test_the_page_is_made_from_the_commands() -> None:
    assert commands_page.PAGE.read_text() == commands_page.page(), "python3 -m buildtools.commands_page makes it again"


def test_every_command_and_option_is_on_the_page() -> None:
    text = commands_page.page()
    for name, command in _FOUND.items():
        section = text.partition(f"# awsomefsd {name}\n")[2].split("\n## ")[0].split("\n### ")[0]
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden]
        own = [one for one in options if one.name not in ("state_dir", "run_dir", "config_file")]
        assert section and all(f"`{word}`" in section for one in own for word in one.opts), name


@pytest.mark.parametrize("name", _FOUND)
def test_help_begins_with_a_sentence_and_explains_every_option(name: str) -> None:
    command = _FOUND[name]
    first = (command.help or "").strip().split("\n\n")[0]
    assert first[:1].isupper() and first.endswith("."), f"{name}: {first!r}"
    assert [one.name for one in command.params if isinstance(one, click.Option) and not one.help] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name in _FOUND])
def test_the_list_of_commands_begins_as_the_help_does(name: str) -> None:
    verb = COMMANDS[name][1].split()[0]
    assert (_FOUND[name].help or "").split()[0] == verb


@pytest.mark.parametrize(("name", "example"), _EXAMPLES)
def test_examples_are_parsed(name: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.backup").touch()
    program, *words = shlex.split(example)
    own = name.split()
    assert program == "awsomefsd" and words[: len(own)] == own
    _FOUND[name].make_context(name, words[len(own) :], obj=Invocation())
