"""What `awsomefsd leave` says at its end."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr

from awsomefsd.cli.join import leave


@pytest.mark.parametrize(("token", "words"), [("afs1-x", ["--purge"]), ("", ["--purge"]), ("afs1-x", [])])
def test_who_has_a_token_in_the_settings_is_told_that_it_joins_again(tmp_path: Path, token: str, words: list[str]) -> None:
    @contextmanager
    def client() -> Any:
        yield SimpleNamespace(call=lambda *_, **__: SimpleNamespace(left=[], mounts=[]))

    invocation = SimpleNamespace(client=client, settings=SimpleNamespace(state_dir=tmp_path, token=SecretStr(token)))
    done = CliRunner().invoke(leave, words, obj=invocation)
    assert done.exit_code == 0 and "has left the cluster" in done.output, done.output
    assert ("joins with it again" in done.output) == (bool(token) and bool(words))
    assert not token or token not in done.output
