"""The document around a page: head, navigation, the place for notices, and the foot.  Pure."""

from __future__ import annotations

from awsomefsd.ui.markup import Markup, join, tag

NAVIGATION = (
    ("/", "Overview"), ("/health", "Health"), ("/nodes", "Nodes"), ("/devices", "Devices"), ("/volumes", "Volumes"), ("/mounts", "Mounts"),
    ("/charts", "Charts"), ("/conflicts", "Conflicts"), ("/events", "Events"),
)  # fmt: skip


OF_READER = "This page shows and changes nothing; the command awsomefsd does."
OF_OPERATOR = "This browser is signed in as an operator: each change is asked back first."


def document(title: str, main: Markup, path: str = "", script: str = "page.js", operator: bool = False) -> bytes:
    """Returns a whole page as UTF-8; with `path` it has the navigation, where that path is the present one."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · awsomefsd"),
        tag("link", rel="icon", href="/static/icon.svg"),
        tag("link", rel="stylesheet", href="/static/style.css"),
        tag("script", src=f"/static/{script}", defer=True) if script else None,
    )
    body = tag(
        "body",
        tag("a", "Skip to the content", class_="skip", href="#main"),
        _header(path) if path else None,
        tag("div", id="notice", role="status"),
        tag("main", main, id="main", tabindex=-1),
        tag("footer", OF_OPERATOR if operator else OF_READER),
    )
    return b"<!doctype html>\n" + tag("html", join([head, body]), lang="en").encode()


def _header(path: str) -> Markup:
    links = [tag("li", tag("a", name, href=place, aria_current="page" if place == path else None)) for place, name in NAVIGATION]
    return tag(
        "header",
        tag("span", "awsomefsd", class_="brand"),
        tag("nav", tag("ul", *links), aria_label="Pages"),
        tag("div", tag("form", tag("button", "Sign out", type="submit"), method="post", action="/sign-out"), id="tools"),
    )
