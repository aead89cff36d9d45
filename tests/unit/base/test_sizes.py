"""Sizes as people write and read them."""

from __future__ import annotations

import pytest

from awsomefsd.base.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("512MiB", 512 << 20),
        ("512MB", 512 << 20),
        ("1.5k", 1536),
        (" 2 T ", 2 << 40),
        ("7b", 7),
    ],
)
def test_understood(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "1.3", "8X", "8 GG", "1e3", "8ib", "99999P", "nan"])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (8 << 30, "8.0 GiB"), (1023 << 10, "1.0 MiB"), (512 << 20, "512 MiB")],
)
def test_shown(count: int, text: str) -> None:
    assert format_bytes(count) == text
