"""Every command line that a page or a message of the program names is one that the program takes: its words and its options.

tests/pages types those of three pages on real nodes.  The others (an operator's page, the fix of a health code, the sentence of an error)
are met when something is wrong already: a command that is not there, or an option of another one, is the last thing to find then.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from awsomefsd.cli.main import cli
from buildtools.say import CHECKOUT

PAGES = sorted(path for path in [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")])
_FENCED = re.compile(r"^```(?:console|sh|bash|text)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(?:sudo )?(awsomefsd [a-z][^`\n]*)`")
_TYPED = re.compile(r"^\s*(?:[a-z]*[#$] +)?(?:sudo |[A-Z_]+=\S+ )*(awsomefsd [a-z].*)$")
_ENDS = re.compile(r"\s(?:\||&&|&|;|>|<|#|2>|\\$)|[|;,](?=\s|$)|: |\)$")  # behind it another command, a redirection or a remark begins
_OF_GROUP = {"-h", "--help", "--version", "--config-fd"}  # the last: how the supervisor starts `segments`
_STARTED_BY_US = {"worker", "forker", "enter-host"}  # matched before the command line is (awsomefsd/__main__.py)
_HOLE = "X"  # what a message puts in


def _lines_of_page(path: Path) -> Iterator[str]:
    text = path.read_text()
    for block in _FENCED.findall(text):
        for line in block.splitlines():
            if typed := _TYPED.match(line):
                yield typed[1]
    yield from _INLINE.findall(_FENCED.sub("", text))


def _texts(tree: ast.AST) -> Iterator[str]:
    """The strings of a module, f-strings with a hole for each value."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else _HOLE for part in node.values)


def _lines_of_program() -> Iterator[tuple[str, str]]:
    for path in sorted((CHECKOUT / "awsomefsd").rglob("*.py")):
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            for text in _texts(ast.parse(path.read_text())):
                for line in _INLINE.findall(" ".join(text.split())):
                    yield str(path.relative_to(CHECKOUT)), line


def _alternatives(word: str) -> list[str]:
    return word.strip("[]").split("|")


def wrong(line: str) -> str:
    """Returns what of a command line the program does not take; "" if it takes all of it."""
    words = _ENDS.split(line, maxsplit=1)[0].split()[1:]
    commands: list[click.Command] = [cli]
    while words and any(isinstance(one, click.Group) for one in commands):
        if words[0] in _OF_GROUP | _STARTED_BY_US or _HOLE in words[0] or not re.match(r"[a-z]", words[0]):
            return ""
        names = _alternatives(words.pop(0))
        groups = [one for one in commands if isinstance(one, click.Group)]
        commands = [found for group in groups for name in names if (found := group.get_command(click.Context(group), name))]
        if len(commands) < len(names):
            return f"no command {'|'.join(names)}"
    known = {option for command in commands for one in command.params for option in (*one.opts, *one.secondary_opts)} | _OF_GROUP
    options = [part for word in words for part in _alternatives(word) if re.match(r"--[a-z]|-[a-zA-Z]$", part)]
    unknown = [option for option in options if option.split("=")[0] not in known]
    return f"no option {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_of_a_page(page: Path) -> None:
    assert [(line, why) for line in _lines_of_page(page) if (why := wrong(line))] == []


def test_of_the_program() -> None:
    found = list(_lines_of_program())
    assert len(found) > 50
    assert [(path, line, why) for path, line in found if (why := wrong(line))] == []


@pytest.mark.parametrize(
    "line",
    ["awsomefsd volume creat home", "awsomefsd node drain n1 --forced", "awsomefsd device ls|shows", "awsomefsd statuss -v"],
)
def test_a_wrong_one_is_found(line: str) -> None:
    assert wrong(line)
