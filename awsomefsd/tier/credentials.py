"""The credentials of a store come from the environment, a file, or the role of the machine.  Never from an argument.

    environment   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN of this process, read once
    file          either two lines (key id, secret; a third may be a session token) or the form of ~/.aws/credentials, of which the first
                  section, or [default], counts; read again every FILE_AGAIN_S, so keys can be changed in place
    given         a pair of keys that the caller has, such as those that the cluster keeps of a store (store_secret.py)
    role          what the machine is given: a token of Kubernetes (AWS_WEB_IDENTITY_TOKEN_FILE), a container's, or the instance's; the
                  library asks for it
"""

from __future__ import annotations

import configparser
import os
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct

from awsomefsd.base.errors import ConfigError

ENVIRONMENT, ROLE = "environment", "role"
FILE_AGAIN_S = 300
FILE_BYTES_MAX = 64 << 10


class Credentials(Struct, frozen=True):
    """A pair of keys; `repr` hides what is secret."""

    key_id: str
    secret: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.key_id[:4]}…)"


def from_environment(environ: Mapping[str, str] = os.environ) -> Credentials:
    """Raises ConfigError if they are not there."""
    key_id, secret = environ.get("AWS_ACCESS_KEY_ID", ""), environ.get("AWS_SECRET_ACCESS_KEY", "")
    if not key_id or not secret:
        raise ConfigError("no credentials in the environment: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give a file or a role")
    return checked(Credentials(key_id, secret, environ.get("AWS_SESSION_TOKEN", "")), "the environment")


def from_file(path: Path) -> Credentials:
    """Raises ConfigError, which names the file and never what is in it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO is opened without waiting for who writes to it
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise ConfigError(f"credentials {path}: is not a regular file")
            with open(fd, "rb", closefd=False) as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(fd)
    except OSError as err:
        raise ConfigError(f"credentials {path}: {err.strerror}") from None
    if info.st_mode & 0o077:
        raise ConfigError(f"credentials {path} can be read by others; chmod 600 it")
    return from_text(raw, str(path))


def from_text(raw: bytes, where: str) -> Credentials:
    """Returns the keys in what a file has.  Raises ConfigError, which names `where` and never what is in it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = ""
    if len(raw) > FILE_BYTES_MAX or not text.strip():
        raise ConfigError(f"credentials {where}: neither two lines (key id, secret) nor a file as ~/.aws/credentials")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _from_sections(text, where) if lines[0].startswith("[") else _from_lines(lines, where)


def provider(source: str | Credentials) -> Callable[[], dict[str, Any]] | None:
    """Returns what the library calls for credentials; None: it asks for the role's itself.

    `source`: keys, ENVIRONMENT, ROLE or the path of a file.  Raises ConfigError when they are not there now.
    """
    if isinstance(source, Credentials):
        given = checked(source, "this store")
        return lambda: _given(given)
    if source == ROLE:
        return None
    if source == ENVIRONMENT:
        kept = from_environment()
        return lambda: _given(kept)
    path = Path(source)
    from_file(path)
    return lambda: _given(from_file(path), datetime.now(UTC) + timedelta(seconds=FILE_AGAIN_S))


def _given(found: Credentials, until: datetime | None = None) -> dict[str, Any]:
    return {"access_key_id": found.key_id, "secret_access_key": found.secret, "token": found.token or None, "expires_at": until}


def _from_lines(lines: list[str], path: str) -> Credentials:
    if not 2 <= len(lines) <= 3:
        raise ConfigError(f"credentials {path}: has {len(lines)} lines; wanted are key id and secret, a line each")
    return checked(Credentials(*lines), path)


def _from_sections(text: str, path: str) -> Credentials:
    sections = configparser.RawConfigParser()
    try:
        sections.read_string(text)
    except configparser.Error:
        raise ConfigError(f"credentials {path}: is not in the form of ~/.aws/credentials") from None
    name = "default" if sections.has_section("default") else next(iter(sections.sections()), "")
    found = sections[name] if name else {}
    key_id, secret = found.get("aws_access_key_id", ""), found.get("aws_secret_access_key", "")
    if not key_id or not secret:
        raise ConfigError(f"credentials {path}: section [{name}] has no aws_access_key_id or no aws_secret_access_key")
    return checked(Credentials(key_id, secret, found.get("aws_session_token", "")), path)


def checked(found: Credentials, where: str) -> Credentials:
    """Returns them.  Raises ConfigError, which does not repeat them, where nobody can have such keys."""
    if not all(text.isascii() and text.isprintable() and " " not in text for text in (found.key_id, found.secret, found.token)):
        raise ConfigError(f"credentials of {where}: a key has a character that none can have")
    return found
