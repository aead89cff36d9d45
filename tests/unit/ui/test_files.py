"""The files of the page: all of them are served, checked files of ours, and carried by every kind of package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from awsomefsd.ui.files import NAMES, files
from buildtools import binary
from buildtools.say import CHECKOUT

STATIC = CHECKOUT / "awsomefsd" / "ui" / "static"


def test_all_files_are_served_and_small() -> None:
    assert {path.name for path in STATIC.iterdir()} == set(NAMES)
    assert sum(len(content) for _kind, content in files().values()) < 32_768, "a page without a build step stays small"


def test_nothing_is_fetched_from_elsewhere_or_run_from_a_string() -> None:
    for name in NAMES:
        text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.|@import|url\(|\beval\b|innerHTML|document\.write|new Function", text), name


def test_packages_carry_them() -> None:
    data = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["awsomefsd.ui"] == ["static/*"]
    (carried,) = [word for word in binary._nuitka(Path("python"), CHECKOUT, 1) if word.startswith("--include-data-dir=")]
    source, _, target = carried.partition("=")[2].partition("=")
    assert Path(source) == STATIC and target == "ui", "beside the program, whose name the package's directory would need"
