"""URLs of stores: s3://BUCKET/PREFIX, or a directory as file:///PATH or /PATH.  Pure.

A URL stands in arguments, rows and logs, so it has no place for a secret: user, password, query and fragment are refused.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from msgspec import Struct

from awsomefsd.base.errors import ConfigError

S3, DIRECTORY = "s3", "directory"
PREFIX_BYTES_MAX = 512
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


class StoreUrl(Struct, frozen=True):
    """`place`: a bucket, or an absolute path.  `prefix`: without slashes around it, "" for none; a directory has none."""

    kind: str
    place: str
    prefix: str = ""

    def __str__(self) -> str:
        if self.kind == DIRECTORY:
            return f"file://{self.place}"
        return f"s3://{self.place}/{self.prefix}".rstrip("/")


def parse_store_url(text: str) -> StoreUrl:
    """Raises ConfigError, which says what a URL looks like; it does not repeat a text in which a secret may stand."""
    if text.startswith("/"):
        text = f"file://{text}"
    if not text.isprintable():
        raise ConfigError("a store's URL has a character that cannot be printed")
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets, or characters that are others in an address
        raise ConfigError("a store's URL is s3://BUCKET/PREFIX, or file:///PATH for a directory") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError("a store's URL has no place for credentials or options; give those by a file or the environment")
    path = parts.path.strip("/")
    if parts.scheme == "file" and not parts.netloc and path:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise ConfigError("a store's directory is an absolute path without . and ..")
        return StoreUrl(DIRECTORY, f"/{path}")
    if parts.scheme != "s3":
        raise ConfigError("a store's URL is s3://BUCKET/PREFIX, or file:///PATH for a directory")
    if not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError(f"{parts.netloc[:80]!r} is no name of a bucket: 3 to 63 small letters, digits, dots and hyphens")
    if path and (not _PREFIX.fullmatch(path) or len(path) > PREFIX_BYTES_MAX or any(not part.strip(".") for part in path.split("/"))):
        raise ConfigError("the prefix in a store's URL has letters, digits, dots, hyphens and underscores, with single slashes between")
    return StoreUrl(S3, parts.netloc, path)
