"""`awsomefsd kubernetes keep-nodes`: what it refuses before it asks anybody."""

from __future__ import annotations

import pytest

from awsomefsd.cli.main import ERROR, USAGE, run

KEEP = ["kubernetes", "keep-nodes", "--secret", "s"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--ttl", "9m"], USAGE, "write 10m or more"),
        (["--ttl", "soon"], USAGE, "not a length of time"),
        (["--remove-after", "1w"], USAGE, "--remove-after: '1w' is not a length of time"),
        (["--every", "0s"], USAGE, "--every: '0s' is not a length of time"),
        (["--remove-after", "1h"], USAGE, "needs NODE_NAME"),
        (["--role", "voter"], USAGE, "--role"),
        ([], ERROR, "this is no pod of Kubernetes"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "NODE_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert run([*KEEP, *words]) == status
    assert said in capsys.readouterr().err


def test_a_pod_without_its_account_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    assert run([*KEEP, "--account", "/nonexistent"]) == ERROR
    assert "does the pod mount its service account" in capsys.readouterr().err
