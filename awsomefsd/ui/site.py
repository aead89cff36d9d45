"""The site: which page answers which request, and who may read it, and change something.

Order: the name that was asked for (web.py), the page's own files, signing in, and then nothing without a session.  An operator's session
has the buttons of actions.py, and what they send is taken from it alone.  The daemon's refusals and silence are pages too.

Any thread may call `answer`; it blocks as long as the daemon's answer takes (readings.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from awsomefsd.admin.plain import message_dict
from awsomefsd.base.errors import Error, Unavailable
from awsomefsd.ui import actions, elements, pages, web
from awsomefsd.ui.files import files
from awsomefsd.ui.frame import document
from awsomefsd.ui.history import History
from awsomefsd.ui.markup import Markup, join, tag
from awsomefsd.ui.readings import Readings
from awsomefsd.ui.sign_in import OPERATOR, SESSION_S, SignIn, TooManyTries
from awsomefsd.ui.web import PageRequest, PageResponse

logger = logging.getLogger(__name__)
BODY_BYTES_MAX = 16_384  # of a form: a directory of a mount, each byte of it written as %XX
_READING = ("GET", "HEAD")
Page = tuple[str, Callable[[actions.Offer], Markup]]


class Site:
    """`names`: the names of this host that requests may be for, besides its addresses.  `port` tells cookies of one host apart."""

    def __init__(self, readings: Readings, history: History, sign_in: SignIn, names: frozenset[str], port: int) -> None:
        self._sign_in = sign_in
        self._names = names
        self._port = port
        self._act = readings.act
        self._ask = ask = readings.ask
        self._pages: dict[str, Page] = {
            "/": ("Overview", lambda _: pages.overview(ask("GetStatus"))),
            "/health": ("Health", lambda offer: pages.health(ask("GetStatus"), offer)),
            "/nodes": ("Nodes", lambda offer: pages.nodes(ask("ListNodes").nodes, offer)),
            "/devices": ("Devices", lambda offer: pages.devices(ask("GetStatus").devices, self._node_names(), offer)),
            "/volumes": ("Volumes", lambda _: pages.volumes(ask("GetStatus").volumes)),
            "/mounts": ("Mounts", lambda offer: pages.mounts(ask("GetStatus").mounts, offer)),
            "/charts": ("Charts", lambda _: pages.charts()),
            "/conflicts": ("Conflicts", lambda _: pages.conflicts(ask("GetStatus").conflicts)),
            "/events": ("Events", lambda _: pages.events(*readings.events())),
        }
        self._json: dict[str, Callable[[], Any]] = {
            "/api/status": lambda: message_dict(ask("GetStatus")),
            "/api/nodes": lambda: [message_dict(row) for row in ask("ListNodes").nodes],
            "/api/events": lambda: readings.events()[0],
            "/api/charts": history.told,
        }

    def answer(self, request: PageRequest) -> PageResponse:
        """Returns the answer to a request whose head was read whole; never raises a domain error."""
        if not web.host_fits(request.headers.get("host", ""), self._names):
            return web.plain(421, "ask for this host by its IP address, its host name, or a name that the setting ui.names has")
        if request.path in files():
            return self._only(request, _READING) or PageResponse(200, *files()[request.path])
        if request.path in ("/sign-in", "/sign-out"):
            return self._signing(request)
        role = self._sign_in.role_of(request.cookies().get(self._cookie(request), ""))
        if not role:
            return web.as_json({"error": "sign in first"}, 401) if request.path.startswith("/api/") else web.see("/sign-in")
        if request.path in self._json:
            return self._only(request, _READING) or self._said(self._json[request.path])
        if request.path in self._pages:
            return self._only(request, _READING) or self._page(request.path, operator=role == OPERATOR)
        if request.path == "/action":
            return self._only(request, ("POST",)) or self._action(request, role)
        return web.html(document("Not found", join([tag("h1", "Not found"), tag("p", "There is no such page.")]), "-"), 404)

    def _only(self, request: PageRequest, methods: tuple[str, ...]) -> PageResponse | None:
        """Returns the refusal of a method that is none of `methods`."""
        return None if request.method in methods else web.plain(405, "not here", [("Allow", ", ".join(methods))])

    def _node_names(self) -> dict[str, str]:
        """Returns the names of nodes by UUID; none where this node may not ask for them, or nobody answers."""
        try:
            return {row.node: row.name for row in self._ask("ListNodes").nodes}
        except Error:
            return {}

    def _page(self, path: str, *, operator: bool) -> PageResponse:
        title, make = self._pages[path]
        try:
            return web.html(document(title, make(actions.offer if operator else actions.offer_nothing), path, operator=operator))
        except Error as err:
            words = "The daemon does not answer" if isinstance(err, Unavailable) else "The daemon refuses"
            said = tag("div", tag("p", elements.mark("error", words)), tag("p", str(err)), role="alert", class_="finding error")
            return web.html(document(title, join([tag("h1", title), said]), path), 503)

    def _said(self, make: Callable[[], Any]) -> PageResponse:
        try:
            return web.as_json(make())
        except Error as err:
            return web.as_json({"error": str(err)}, 503)

    def _action(self, request: PageRequest, role: str) -> PageResponse:
        """Asks back whether an action is to be done; does it where the form says that this was answered."""
        if not web.same_origin(request):
            return web.plain(403, "this form is sent by its own page only")
        if role != OPERATOR:
            return web.plain(403, "this session only reads; `awsomefsd ui --operator` prints an address that signs in for more")
        form = _fields(request)
        name, target = form.get("action", ""), form.get("target", "")
        if name not in actions.ACTIONS or not actions.takes(name, target):
            return web.plain(400, "there is no such action")
        action, status, heading, trouble = actions.ACTIONS[name], 200, "Done", ""
        if form.get("sure") != "yes":
            return web.html(document(f"{action.button}?", actions.question(name, target), action.page, "", operator=True))
        try:
            self._act(action.rpc, action.fields(target))
        except Error as err:
            status, heading = (503, "No answer") if isinstance(err, Unavailable) else (409, "Not done")
            trouble = str(err)
        logger.info(
            "somebody has used the page", extra={"from": request.address, "action": name, "target": target, "trouble": trouble or "none"}
        )
        made = document(heading, actions.outcome(name, target, trouble, heading), action.page, "", operator=True)
        return web.html(made, status)

    # --- signing in ----------------------------------------------------------------------------------------------------------

    def _cookie(self, request: PageRequest) -> str:
        """Returns the name of the cookie: of this host and path alone with TLS; without, of this port, which cookies do not tell apart."""
        return "__Host-awsomefsd" if request.secure else f"awsomefsd-{self._port}"

    def _set_cookie(self, request: PageRequest, value: str, seconds: int) -> tuple[str, str]:
        secure = "; Secure" if request.secure else ""
        return "Set-Cookie", f"{self._cookie(request)}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"

    def _signing(self, request: PageRequest) -> PageResponse:
        if request.path == "/sign-in" and request.method in _READING:
            return _form("")
        if refused := self._only(request, ("POST",) if request.path == "/sign-out" else ("GET", "HEAD", "POST")):
            return refused
        if not web.same_origin(request):
            return web.plain(403, "this form is sent by its own page only")
        if request.path == "/sign-out":
            self._sign_in.end(request.cookies().get(self._cookie(request), ""))
            return web.see("/sign-in", [self._set_cookie(request, "", 0)])
        code = _fields(request).get("code", "")
        try:
            cookie = self._sign_in.begin(code, request.address)
        except TooManyTries as err:
            if err.first:
                logger.warning("too many wrong codes for the page", extra={"from": request.address})
            return _form(str(err), 429)
        if not cookie:
            logger.warning("a wrong code for the page", extra={"from": request.address})
            return _form("This code is wrong, or it was used, or it is over. Get a new one with the command.", 403)
        return web.see("/", [self._set_cookie(request, cookie, int(SESSION_S))])


def _fields(request: PageRequest) -> dict[str, str]:
    """Returns the fields of a form, of several with one name the first."""
    return {name: values[0] for name, values in parse_qs(request.body.decode(errors="replace")).items()}


def _form(trouble: str, status: int = 200) -> PageResponse:
    label = tag("label", "Code that the command awsomefsd ui has printed", for_="code")
    field = tag("input", id="code", name="code", autocomplete="off", autofocus=True, required=True, spellcheck="false", maxlength=64)
    said = tag("p", trouble, role="alert", class_="finding error") if trouble else None
    form = tag("form", label, field, tag("button", "Sign in", type="submit"), method="post", action="/sign-in", id="sign-in")
    return web.html(document("Sign in", join([tag("h1", "Sign in"), said, form]), script="login.js"), status)
