"""HTML that is safe by construction: whatever is not Markup is escaped.  Pure.

Others chose names of files, volumes and nodes, so no text goes into a page but through `tag` and `text`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from awsomefsd.base.log import printable

_VOID = frozenset({"meta", "link", "input", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = Markup | str | int | float | None


def text(value: object) -> Markup:
    """Returns a value as HTML that shows it, without what is not printable; Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """Returns an element.  Children and values of attributes are escaped; None is left out, as is an attribute that is False.

    An underscore in the name of an attribute is a hyphen (`aria_label`); one at the end is none (`class_`).
    """
    words = [name]
    for key, value in attributes.items():
        if value is True:
            words.append(_attribute(key))
        elif value is not None and value is not False:
            words.append(f'{_attribute(key)}="{text(str(value))}"')
    opened = f"<{' '.join(words)}>"
    assert not (name in _VOID and children), name
    return Markup(opened if name in _VOID else f"{opened}{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Returns all of them, one behind the other, escaped."""
    return Markup("".join(text(child) for child in children if child is not None))


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
