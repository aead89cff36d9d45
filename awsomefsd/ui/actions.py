"""The actions that a page offers: a fixed list, each a call of the admin API with one target.  Pure.

Only a session of an operator is offered them (sign_in.py).  Each is asked back before it is done, in words that say what follows from it.
Nothing here destroys: what removes, wipes or deletes is for the command line, where the name is typed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from awsomefsd.ui.markup import Child, Markup, join, tag


@dataclass(frozen=True)
class PageAction:
    """`{}` in `asks` and `done` is the target; `fields` makes the request's fields of it; `page` offers the action."""

    button: str
    page: str
    asks: str
    done: str
    rpc: str
    fields: Callable[[str], dict[str, Any]] = lambda target: {}


def _node(action: str) -> Callable[[str], dict[str, Any]]:
    return lambda target: {"node": target, "action": action}


ACTIONS: Mapping[str, PageAction] = MappingProxyType(
    {
        "cordon": PageAction(
            "Cordon",
            "/nodes",
            "Node {} gets no new mounts and no new metadata, until it is uncordoned. What it has stays.",
            "Node {} is cordoned.",
            "SetNode",
            _node("cordon"),
        ),
        "uncordon": PageAction(
            "Uncordon",
            "/nodes",
            "Node {} takes new mounts and metadata again.",
            "Node {} is uncordoned.",
            "SetNode",
            _node("uncordon"),
        ),
        "drain-device": PageAction(
            "Drain",
            "/devices",
            "All data of device {} moves to other devices, and nothing new is put on it.",
            "Device {} is being drained.",
            "DrainDevice",
            lambda target: {"device": target},
        ),
        "undrain-device": PageAction(
            "End drain",
            "/devices",
            "Device {} takes new data again. What was moved away stays where it is.",
            "Device {} is not drained any more.",
            "DrainDevice",
            lambda target: {"device": target, "undo": True},
        ),
        "scan": PageAction(
            "Scan for devices",
            "/devices",
            "This node looks at all its block devices, and takes up those of the cluster.",
            "This node has looked.",
            "ScanDevices",
        ),
        "collect": PageAction(
            "Collect now",
            "/devices",
            "This node copies the live data of sparse segments together, as long as that gives whole segments back. "
            "It takes half of the time of the devices at most. A collection that was stopped goes on again.",
            "Collection was started.",
            "Collect",
            lambda target: {"action": "start"},
        ),
        "scrub": PageAction(
            "Start scrub",
            "/health",
            "Every node reads all live data on its devices once, and checks it.",
            "Scrub was started.",
            "ScrubStart",
        ),
        "stop-scrub": PageAction("Stop scrub", "/health", "The scrub that goes on ends.", "Scrub was stopped.", "ScrubStop"),
        "flush": PageAction(
            "Flush",
            "/mounts",
            "All that was written to {} until now becomes durable.",
            "{} is durable.",
            "Flush",
            lambda target: {"target": target},
        ),
    }
)

Offer = Callable[..., Child]  # (name of an action, its target) → its button, None for who may only read


def takes(name: str, target: str) -> bool:
    """Returns whether that can be a target of the action, as the buttons have it: a device by its number, all else as people read it."""
    return target.isprintable() and (not name.endswith("-device") or (target.isascii() and target.isdecimal()))


def offer(name: str, target: str = "") -> Markup:
    """Returns the button of an action."""
    action = ACTIONS[name]
    label = f"{action.button}: {target}" if target else None
    return _form(name, target, tag("button", action.button, type="submit", aria_label=label))


def offer_nothing(name: str, target: str = "") -> None:
    """Stands for `offer` where the session only reads."""
    assert name in ACTIONS


def question(name: str, target: str) -> Markup:
    """Returns the page that asks whether it is to be done."""
    action = ACTIONS[name]
    yes = _form(name, target, tag("input", type="hidden", name="sure", value="yes"), tag("button", action.button, type="submit"))
    back = tag("a", "Back, and change nothing", href=action.page)
    return join([tag("h1", f"{action.button}?"), tag("p", action.asks.format(target)), tag("div", yes, back, class_="actions")])


def outcome(name: str, target: str, trouble: str = "", heading: str = "Done") -> Markup:
    """Returns the page that says that it was done, or what `trouble` there was."""
    action = ACTIONS[name]
    if trouble:
        said = tag("div", tag("p", trouble), role="alert", class_="finding error")
    else:
        said = tag("p", action.done.format(target), role="status")
    return join([tag("h1", heading), said, tag("p", tag("a", "Back", href=action.page))])


def _form(name: str, target: str, *last: Child) -> Markup:
    held = [tag("input", type="hidden", name="action", value=name), tag("input", type="hidden", name="target", value=target)]
    return tag("form", *held, *last, method="post", action="/action")
