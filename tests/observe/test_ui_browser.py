"""The page in a real browser: by keyboard alone, narrow and wide, light and dark, with nothing refused and nothing that overflows.

The pictures are in build/ui (or AWSOMEFSD_TEST_UI_PICTURES), for people to look at.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.ui.frame import NAVIGATION
from buildtools.nodes import Node
from buildtools.say import CHECKOUT
from tests.rigs import browser as rig
from tests.rigs.browser import ENTER, TAB, Browser
from tests.rigs.ui_page import CommandPage, serving

pytestmark = [pytest.mark.root, pytest.mark.soak]
SIZES = [(width, scheme) for width in (400, 1600) for scheme in ("light", "dark")]
FOCUSED = "return [document.activeElement.tagName, document.activeElement.innerText || document.activeElement.id]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if missing := rig.missing():
        pytest.skip(f"no browser: {missing}")
    with rig.browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def page(node: Node) -> Iterator[CommandPage]:
    with serving(node, "127.0.0.1:0") as made:
        yield made


@pytest.fixture(scope="module")
def entered(browser: Browser, page: CommandPage) -> Browser:
    """A browser that was given the printed address, in a window that showed the form already."""
    browser.go(page.address)
    browser.wait("the form", "return document.getElementById('code')")
    browser.go(page.link)
    browser.wait("the overview", "return document.querySelector('h1').innerText === 'Overview'")
    assert page.link.partition("#")[2] not in browser.address, "the code is not left in the address bar"
    return browser


def pictures() -> Path:
    made = Path(os.environ.get("AWSOMEFSD_TEST_UI_PICTURES") or CHECKOUT / "build" / "ui")
    made.mkdir(parents=True, exist_ok=True)
    return made


def test_every_page_at_every_size_and_scheme(entered: Browser, page: CommandPage, node: Node) -> None:
    node.cli("volume", "create", "a-volume-with-a-name-of-sixty-characters-as-long-as-they-may", "--quota", "7G")
    entered.complaints()
    for place, name in NAVIGATION:
        entered.go(page.address + place)
        if place == "/charts":
            entered.wait("lines in all charts", "return document.querySelectorAll('.chart polyline').length >= 10")
        for width, scheme in SIZES:
            entered.look(width, scheme)
            entered.picture(pictures() / f"{name.lower()}-{width}-{scheme}.png")
            beyond = entered.run("return document.documentElement.scrollWidth - window.innerWidth")
            assert beyond <= 0, f"{name} is {beyond} pixels wider than {width}"
            ground = entered.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
            assert (sum(ground) < 200) == (scheme == "dark"), ground
    assert not entered.complaints(), "nothing was refused by the policy, missing, or wrong in a script"


def test_the_keyboard_alone_leads_to_every_page(entered: Browser, page: CommandPage) -> None:
    entered.look(1600, "light")
    for place, name in NAVIGATION:
        entered.go(page.address + "/conflicts")
        entered.press(TAB)
        assert entered.run(FOCUSED)[1] == "Skip to the content"
        for _ in NAVIGATION:
            entered.press(TAB)
            if entered.run(FOCUSED)[1] == name:
                break
        ring = entered.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", "where the focus is can be seen"
        entered.press(ENTER)
        entered.wait(name, f"return location.pathname === '{place}' && document.querySelector('h1').innerText === '{name}'")
    entered.press(TAB, ENTER)
    assert entered.run(FOCUSED)[0] == "MAIN" or entered.run("return location.hash") == "#main", "past the navigation in two keys"


def test_a_refresh_takes_neither_focus_nor_a_selection(entered: Browser, page: CommandPage) -> None:
    entered.go(page.address + "/devices")
    entered.run("document.querySelector('.wide').focus(); window.before = document.querySelector('.wide')")
    entered.wait("a refresh", "return !window.before.isConnected")
    assert entered.run("return document.activeElement.className") == "wide"
    entered.run("getSelection().selectAllChildren(document.querySelector('td')); window.before = document.querySelector('.wide')")
    entered.run("return refresh()")
    assert entered.run("return window.before.isConnected"), "what somebody is copying stays"
    entered.run("getSelection().removeAllRanges()")


def test_pause_and_sign_out_by_keyboard(entered: Browser, page: CommandPage) -> None:
    entered.go(page.address + "/nodes")
    entered.run("document.querySelector('#tools button').focus()")
    entered.press(ENTER)
    assert entered.run(FOCUSED) == ["BUTTON", "Refresh"]
    entered.press(TAB)
    assert entered.run(FOCUSED) == ["BUTTON", "Sign out"]
    entered.press(ENTER)
    entered.wait("the form", "return document.getElementById('code') && document.activeElement.id === 'code'")
    entered.go(page.address + "/")
    entered.wait("the form", "return document.getElementById('code')")
    entered.complaints()


def test_what_stays_says_since_when_when_the_command_ends(browser: Browser, node: Node) -> None:
    with serving(node, "0.0.0.0:0") as page:
        browser.go(page.link)
        browser.wait("the overview by TLS", "return document.querySelector('h1').innerText === 'Overview'")
        page.process.send_signal(signal.SIGINT)
        page.process.wait(60)
        browser.wait("the notice", "return document.getElementById('notice').innerText.includes('does not answer')")
        browser.look(400, "light")
        browser.picture(pictures() / "no-answer-400-light.png")
        assert "Leader of the metadata" in browser.text()
