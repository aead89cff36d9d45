"""build.py audit: are vulnerabilities known of what is bundled?  Asked are PyPI and then OSV, by pip-audit, of the locked packages.

pip-audit (locked in packaging/audit, in a venv of its own) ends with 0 also when nobody answered it: mirrors of PyPI often lack the part
that knows.  So its JSON is read, and a package that could not be asked about is never called clean.  What comes from Debian (glibc in the
image, Python, expat, libfuse3) is in no such database; `debsecan` or a scanner of images knows about it, from the list of contents.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from buildtools.say import CHECKOUT, bad, good, run, step, warn

RECIPE = CHECKOUT / "packaging" / "audit" / "tools.lock"
WORK = CHECKOUT / "build" / "audit"
SERVICES = ("pypi", "osv")
ASK_S, ASK_ONE_S = 300.0, 10
NOBODY_ANSWERED = 3


class Known(NamedTuple):
    """What one database says."""

    clean: list[str]
    vulnerable: list[str]  # in words
    unknown: list[str]

    @property
    def answered(self) -> bool:
        return not self.unknown and bool(self.clean or self.vulnerable)


def understand(text: str) -> Known:
    """pip-audit's JSON, which may be missing altogether."""
    known = Known([], [], [])
    try:
        rows: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return known
    for row in rows:
        if "skip_reason" in row:
            known.unknown.append(row["name"])
        elif row["vulns"]:
            found = ", ".join(f"{one['id']} (fixed in {' '.join(one['fix_versions']) or 'none'})" for one in row["vulns"])
            known.vulnerable.append(f"{row['name']} {row['version']}: {found}")
        else:
            known.clean.append(row["name"])
    return known


def _tool() -> Path:
    """pip-audit, made anew when its lock changes."""
    wanted, stamp = hashlib.sha256(RECIPE.read_bytes()).hexdigest(), WORK / "stamp"
    if not stamp.exists() or stamp.read_text() != wanted:
        step("Preparing the venv of the audit")
        shutil.rmtree(WORK, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(WORK)], what="making build/audit")
        install = [str(WORK / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes"]
        run([*install, "--only-binary", ":all:", "-r", str(RECIPE)], what="pip install pip-audit", timeout_s=900)
        stamp.write_text(wanted)
    return WORK / "bin" / "pip-audit"


def ask(lock: Path, service: str) -> tuple[Known, str]:
    """What a database says of a lock; and the last words of pip-audit."""
    words = ["-r", str(lock), "--disable-pip", "--require-hashes", "-f", "json", "-s", service, "--progress-spinner", "off"]
    argv = [str(_tool()), *words, "--timeout", str(ASK_ONE_S)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        return Known([], [], []), f"no end within {ASK_S:.0f} s"
    return understand(done.stdout), (done.stderr.strip().splitlines() or [""])[-1][:200]


def build(lock: Path) -> int:
    """The exit code: 0 nothing is known, 1 something is, NOBODY_ANSWERED."""
    step("Known vulnerabilities")
    for service in SERVICES:
        known, said = ask(lock, service)
        for text in known.vulnerable:
            bad(text)
        if known.vulnerable:
            return 1
        if known.answered:
            good(f"{service} knows nothing against {len(known.clean)} packages")
            return 0
        lacking = f"{len(known.unknown)} packages are not known there" if known.unknown else said
        warn(f"{service} did not answer: {lacking}")
    warn("not looked for: known vulnerabilities of what is bundled; no database could be had from here")
    return NOBODY_ANSWERED
