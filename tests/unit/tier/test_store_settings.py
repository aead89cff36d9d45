"""URLs of stores and where credentials come from: what is taken, what is refused, and that no secret is repeated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.tier.credentials import ENVIRONMENT, FILE_AGAIN_S, ROLE, Credentials, from_environment, from_file, provider
from awsomefsd.tier.store_url import DIRECTORY, S3, StoreUrl, parse_store_url


@pytest.mark.parametrize(
    ("text", "url", "told"),
    [
        ("s3://bucket/a/b/", StoreUrl(S3, "bucket", "a/b"), "s3://bucket/a/b"),
        ("s3://bucket", StoreUrl(S3, "bucket"), "s3://bucket"),
        ("/mnt/x y", StoreUrl(DIRECTORY, "/mnt/x y"), "file:///mnt/x y"),
        ("file:///mnt/x", StoreUrl(DIRECTORY, "/mnt/x"), "file:///mnt/x"),
    ],
)
def test_urls(text: str, url: StoreUrl, told: str) -> None:
    assert parse_store_url(text) == url and str(url) == told and parse_store_url(told) == url


@pytest.mark.parametrize(
    "text",
    [
        "", "bucket", "s3://", "s3://Bucket", "s3://b", "s3://bu_cket/x", "s3://key:S3CRET@bucket/x", "s3://bucket/x?key=S3CRET",
        "s3://bucket/#S3CRET", "gs://bucket", "s3://bucket/a/../b", "s3://bucket/a//b", "s3://bucket/a b", "file://host/x", "/",
        "file:///a/../b", "/a/./b", "s3://bucket/" + "x" * 600, "/a\nb", "https://S3CRET@x.de/", "s3://[x", "s3://exa\u2100mple/S3CRET",
    ],
)  # fmt: skip
def test_urls_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_store_url(text)
    assert "S3CRET" not in str(caught.value)


def test_credentials_of_the_environment() -> None:
    given = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "S3CRET", "AWS_SESSION_TOKEN": "T0KEN"}
    found = from_environment(given)
    assert found == Credentials("AK", "S3CRET", "T0KEN") and "S3CRET" not in repr(found) and "T0KEN" not in repr(found)
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY"):
        from_environment({"AWS_ACCESS_KEY_ID": "AK"})


@pytest.mark.parametrize(
    "text",
    ["AK\nS3CRET\n", "  AK  \n\n S3CRET", "[a]\naws_access_key_id=AK\naws_secret_access_key = S3CRET\n",
     "[a]\naws_access_key_id=B\naws_secret_access_key=C\n[default]\naws_access_key_id=AK\naws_secret_access_key=S3CRET"],
)  # fmt: skip
def test_credentials_of_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(text)
    assert from_file(path) == Credentials("AK", "S3CRET")


@pytest.mark.parametrize(
    "text",
    ["", "AK", "AK\nS3CRET\nx\ny", "[a]\naws_access_key_id = AK", "[a\nS3CRET", "[a]\nS3CRET", "AK\nS3CRET \u00e4", "AK\nS3 CRET",
     "\0" * 70_000],
)  # fmt: skip
def test_files_without_credentials_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        from_file(path)
    assert "S3" not in str(caught.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("AK\nS3CRET\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        from_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        provider(str(tmp_path / "none"))


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO to which nobody writes would be waited for, and with it the daemon's thread."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(ConfigError, match="is not a regular file") as refused:
            from_file(path)
        assert str(path) in str(refused.value)


def test_what_the_library_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CRET")
    ask = provider(ENVIRONMENT)
    assert ask is not None and ask() == {"access_key_id": "AK", "secret_access_key": "S3CRET", "token": None, "expires_at": None}
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text("AK2\nS\nT\n")
    again = provider(str(path))
    assert again is not None and again()["token"] == "T" and again()["expires_at"] is not None and FILE_AGAIN_S > 0
    assert provider(ROLE) is None
