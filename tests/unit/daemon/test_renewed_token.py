"""A file with a join token that somebody renews: what counts in it, and what happens when it changes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from awsomefsd.base.errors import AlreadyExists, Refused, Unavailable
from awsomefsd.cluster.pki import founding_token, token
from awsomefsd.daemon.renewed_token import RenewedToken, work
from awsomefsd.daemon.way_in import Work

OURS, OTHERS = uuid.UUID(int=1), uuid.UUID(int=2)


def join_text(cluster: uuid.UUID = OURS) -> str:
    return token.print_token(token.make(str(cluster), "ab" * 32, ("10.0.0.1:7440",), "node", 1))


def founding_text(cluster: uuid.UUID = OURS) -> str:
    made = founding_token.make(1, (), time.time_ns())
    return founding_token.print_token(founding_token.FoundingToken(cluster.bytes, made.secret, 1, 1, (), made.expires_ms))


def never() -> bool:
    return False


@pytest.mark.parametrize("configured", ["", join_text(), founding_text()])
def test_the_files_token_counts_if_it_is_of_the_same_cluster(tmp_path: Path, configured: str) -> None:
    file = RenewedToken(tmp_path / "token", configured)
    assert file.read() == "" and "cannot be read: No such file" in file.trouble
    (tmp_path / "token").write_text("\n")
    assert file.read() == "" and "is empty until the cluster has formed" in file.trouble
    (tmp_path / "token").write_text(join_text()[:-4])
    assert file.read() == "" and "truncated" in file.trouble
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    assert file.read() == "" and "not a token" in file.trouble
    (tmp_path / "token").write_text(good := join_text())
    assert file.read() == good
    (tmp_path / "token").write_text(join_text(OTHERS))
    assert bool(file.read()) == (configured == "")
    assert configured == "" or "delete the Secret's token" in file.trouble


class Refusing:
    """Joins with the tokens that are `good`; otherwise each try replaces the file's content, as the keeper of nodes would."""

    def __init__(self, path: Path, *contents: str) -> None:
        self.path, self.contents, self.tried = path, list(contents), list[str]()

    def __call__(self, text: str) -> None:
        self.tried.append(text)
        if self.contents:
            self.path.write_text(self.contents.pop(0))
            raise Refused("the token has expired") if len(self.contents) % 2 else Unavailable("no node answers")


def run(made: Work) -> None:
    async def main() -> None:
        with trio.fail_after(60):
            await made.run()

    trio.run(main)


def test_it_is_read_anew_after_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.daemon.renewed_token.AGAIN_S", 0.01)
    texts = [join_text() for _ in range(3)]
    (path := tmp_path / "token").write_text(texts[0])
    join = Refusing(path, *texts[1:])
    run(made := work(RenewedToken(path, ""), join, None, never))
    assert join.tried == texts and made.words()[0] == "waiting: no node answers"


def test_a_machine_that_is_in_is_in(tmp_path: Path) -> None:
    (path := tmp_path / "token").write_text(join_text())

    def join(text: str) -> None:
        raise AlreadyExists("this machine is a node already")

    run(work(RenewedToken(path, ""), join, None, never))
    path.unlink()
    run(work(RenewedToken(path, ""), join, None, lambda: True))


def configured_work(does: Callable[[], object], ended: list[str]) -> Work:
    async def run() -> None:
        try:
            does()
            await trio.sleep_forever()
        finally:
            ended.append("ended")

    return Work(run, lambda: ["waiting: founding"])


def test_founding_is_given_up_when_the_file_has_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.daemon.renewed_token.LOOK_S", 0.01)
    path, ended, text = tmp_path / "token", list[str](), join_text()
    join = Refusing(path)
    founding = configured_work(lambda: path.write_text(text), ended)
    made = work(RenewedToken(path, founding_text()), join, founding, never)
    run(made)
    assert ended == ["ended"] and join.tried == [text] and made.words()[0] == "waiting: founding"


def test_an_error_of_the_configured_token_ends_the_daemon(tmp_path: Path) -> None:
    def fail() -> None:
        raise Refused("the founding token has expired")

    with pytest.raises(Refused, match="has expired"):
        run(work(RenewedToken(tmp_path / "token", founding_text()), Refusing(tmp_path), configured_work(fail, []), never))
