"""The page of a daemon: off unless it is set, and refused in words where it cannot be."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from awsomefsd.base.errors import ConfigError, Refused
from awsomefsd.config.settings import load
from awsomefsd.daemon.web_page import WebPage
from tests.rigs.free_ports import free_ports


def test_without_the_setting_there_is_no_page_and_no_login() -> None:
    with ExitStack() as undo, pytest.raises(Refused, match=r"serves no web page: set ui\.listen .*without --login"):
        WebPage(load(environ={}), undo).login(operator=False)


def test_with_it_there_is_one_until_the_end(tmp_path: Path) -> None:
    at = f"127.0.0.1:{free_ports(1)[0]}"
    settings = load(environ={"AWSOMEFSD_UI_LISTEN": at}, run_dir=tmp_path, state_dir=tmp_path)
    for _ in range(2):  # the first one has left the address
        with ExitStack() as undo:
            address, seconds = WebPage(settings, undo).login(operator=False)
            assert address.startswith(f"http://{at}/sign-in#") and seconds == 900
            with ExitStack() as other, pytest.raises(ConfigError, match=rf"ui\.listen = '{at}': Address already in use"):
                WebPage(settings, other)


def test_an_address_that_others_reach_needs_the_certificate(tmp_path: Path) -> None:
    settings = load(environ={"AWSOMEFSD_UI_LISTEN": "0.0.0.0:7480"}, run_dir=tmp_path, state_dir=tmp_path)
    with ExitStack() as undo, pytest.raises(ConfigError, match=r"the page cannot have TLS: .*node\.pem"):
        WebPage(settings, undo)
