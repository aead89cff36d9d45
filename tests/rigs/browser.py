"""A headless Chromium, driven by Debian's chromedriver over its JSON protocol (WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from buildtools.nodes import await_true

ANSWER_S = 120.0
ENTER, TAB = "\ue007", "\ue004"


def missing() -> str:
    """What would have to be installed; "" if all is there."""
    absent = [package for package, program in (("chromium", "chromium"), ("chromium-driver", "chromedriver")) if not shutil.which(program)]
    return f"apt-get install -y {' '.join(absent)}" if absent else ""


class Browser:
    """One window.  Each method returns when the browser has done it."""

    def __init__(self, port: int, arguments: list[str]) -> None:
        self._at = f"http://127.0.0.1:{port}"
        options = {"args": arguments}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "acceptInsecureCerts": True,
        }
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._at + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return json.load(answer)["value"]

    def _do(self, path: str, **body: Any) -> Any:
        return self._ask("POST", self._session + path, body)

    def go(self, address: str) -> None:
        self._do("/url", url=address)

    @property
    def address(self) -> str:
        return str(self._ask("GET", self._session + "/url"))

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns, which is the body of a function."""
        return self._do("/execute/sync", script=script, args=list(arguments))

    def wait(self, what: str, script: str) -> Any:
        """Returns the first true value of a script; the page may change meanwhile."""
        return await_true(f"{what} in the browser", lambda: self.run(script), ANSWER_S, 0.05)

    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def press(self, *keys: str) -> None:
        """Presses keys one after the other, as a person without a mouse does."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._do("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._do("/goog/cdp/execute", cmd=command, params=parameters)

    def look(self, width: int, scheme: str) -> None:
        """`scheme` is "light" or "dark"."""
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        """Writes the whole page, also what is below the window, as PNG."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console has had since the last call: refused by the policy, failed, or wrong in a script."""
        return [str(entry["message"]) for entry in self._do("/se/log", type="browser")]

    def close(self) -> None:
        self._ask("DELETE", self._session)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser without a window, whose profile is in an empty directory."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(int(line.split()[-1].rstrip(".")) for line in driver.stdout if "started successfully on port" in line)
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        made = Browser(port, arguments)
        try:
            yield made
        finally:
            made.close()
    finally:
        driver.terminate()
        driver.wait(60)
