"""Files and nodes have the names that others gave them: what a terminal takes for commands does not reach it, and a line stays a line."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import FsError
from awsomefsd.cli import fsck, log, main, output, scrub, status

EVIL = "a\x1b]0;root\x07\n       9  forged\x9b2J"
SHOWN = r"a\x1b]0;root\x07\x0a       9  forged\x9b2J"


def test_a_change_of_a_user_is_one_line() -> None:
    change = pb.Change(index=8, command="Create", fields=json.dumps({"name": EVIL, "names": [EVIL]}))
    line = log._line(change)
    assert SHOWN in line and line.isprintable()


def test_what_names_files_and_nodes_is_printable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    reply = pb.Status(node="n", health=[pb.Health(code="DAMAGED_FILE", severity="error", what=f"file {EVIL}")])
    status._print(reply, verbose=False)
    fsck._some([EVIL])
    output.print_table(["NAME"], [[EVIL]])
    printed = capsys.readouterr().out
    assert printed.count(SHOWN) == 3 and not {"\x07", "\x9b"} & set(printed) and "\n       9" not in printed


def test_a_finding_of_scrub_is_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pb.Scrub(state="done", findings=[pb.ScrubFinding(where="segment 1", path=EVIL, what="wrong bytes")])

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def call(self, *_asked: object, **_fields: object) -> pb.Scrub:
            return found

    class Invocation:
        client = Client

    result = CliRunner().invoke(scrub.status, [], obj=Invocation())
    assert SHOWN in result.output and "\x1b" not in result.output


def test_an_error_of_the_daemon_is_printable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_invocation: main.Invocation) -> None:
        raise FsError(16, "used by a\x1b]0;root\x07 (pid 7)\nforged words")

    monkeypatch.setattr(main.Invocation, "client", busy)
    assert main.run(["status"]) == 1
    assert capsys.readouterr().err == r"awsomefsd: used by a\x1b]0;root\x07 (pid 7)\x0aforged words" + "\n"


def test_a_name_that_is_no_utf_8_is_no_bug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def sends(_invocation: main.Invocation) -> None:
        pb.UmountRequest(target=os.fsdecode(b"/mnt/\xff"))

    monkeypatch.setattr(main.Invocation, "client", sends)
    assert main.run(["status"]) == 1
    assert capsys.readouterr().err == r"awsomefsd: /mnt/\xff is no UTF-8; what is sent to the daemon has to be" + "\n"
