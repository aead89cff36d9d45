"""Kubernetes, the sidecars, helm and upstream's storage suite, built from Go modules: one module, so that packages are compiled once.

Everything comes through the Go module proxy.  A program is kept with the digest of what it was made from (versions, flags, our own
main) and is not built again; the first time takes 15 to 30 minutes on two cores, niced, with one package at a time on each.
`k8s.io/kubernetes` names its own parts by paths in its tree; they are replaced by the modules of the same release.

No line of upstream is in this tree: our `programs/e2e/main.go` is a main around upstream's packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from buildtools.kubernetes.rig import OWN, Rig
from buildtools.say import BuildError, good, step

VERSION = "v1.36.3"
GO_MIN = (1, 26)
MODULES = {
    "k8s.io/kubernetes": VERSION,
    "github.com/kubernetes-csi/external-provisioner/v6": "v6.3.0",
    "github.com/kubernetes-csi/external-resizer/v2": "v2.2.0",
    "helm.sh/helm/v3": "v3.22.0",
}
# Each row is one call of go, so that a run that is stopped has something: program -> package.
PROGRAMS = (
    {f"kube-{name}": f"k8s.io/kubernetes/cmd/kube-{name}" for name in ("apiserver", "controller-manager", "scheduler")}
    | {"kubelet": "k8s.io/kubernetes/cmd/kubelet"},
    {"csi-provisioner": "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner"},
    {"csi-resizer": "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer"},
    {"kubectl": "k8s.io/kubernetes/cmd/kubectl"},
    {"agnhost": "kube/agnhost"},
    {"e2e": "kube/e2e"},
    {"helm": "helm.sh/helm/v3/cmd/helm"},
)
JOBS = "2"
BUILD_S = 7_200


def ldflags() -> str:
    """What upstream's own build says about itself; without it helm and the suite take the cluster for an unknown version."""
    major, minor = VERSION.removeprefix("v").split(".")[:2]
    rows = ["-s", "-w"]
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        rows += [f"-X {package}.gitVersion={VERSION}", f"-X {package}.gitMajor={major}", f"-X {package}.gitMinor={minor}"]
    return " ".join(rows)


class Sources:
    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._module = rig.cache / "module"
        self._kept = rig.bin / "made.json"

    def _environment(self) -> dict[str, str]:
        own = {"GOPATH": str(self._rig.cache / "gopath"), "GOCACHE": str(self._rig.cache / "gocache"), "GOTOOLCHAIN": "local"}
        own |= {"CGO_ENABLED": "0", "GOGC": "400", "GOFLAGS": "-mod=mod -modcacherw -buildvcs=false"}
        return dict(os.environ) | own

    def _go(self, *words: str, timeout_s: float = BUILD_S) -> str:
        argv = ["nice", "-n", "19", str(go()), *words]
        try:
            done = subprocess.run(
                argv, cwd=self._module, env=self._environment(), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"go {words[0]}: no end within {timeout_s:.0f} s; what is compiled is kept, so call again") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-1_500:]
            raise BuildError(
                f"go {' '.join(words[:2])} ended with {done.returncode} (modules come through GOPROXY, `go env GOPROXY`):\n{said}"
            )
        return done.stdout

    def digest(self, programs: dict[str, str]) -> str:
        parts = [json.dumps([MODULES, ldflags(), sorted(programs.items())])]
        for package in programs.values():
            if package.startswith("kube/"):
                parts.append((OWN / package.removeprefix("kube/") / "main.go").read_text())
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _made(self) -> dict[str, str]:
        return dict(json.loads(self._kept.read_text())) if self._kept.exists() else {}

    def missing(self) -> list[dict[str, str]]:
        made = self._made()
        return [row for row in PROGRAMS if any(made.get(name) != self.digest(row) or not (self._rig.bin / name).exists() for name in row)]

    def build(self) -> None:
        """All programs, in `bin`; raises BuildError where Go or a module cannot be had."""
        self._rig.bin.mkdir(parents=True, exist_ok=True)
        wanted = self.missing()
        if not wanted:
            good(f"Kubernetes {VERSION} and what goes with it: built before")
            return
        step(f"Building {', '.join(name for row in wanted for name in row)} (the first time 15 to 30 minutes)")
        self._write_module()
        for row in wanted:
            self._go("build", "-p", JOBS, "-gcflags=all=-dwarf=false", f"-ldflags={ldflags()}", "-o", f"{self._rig.bin}/", *row.values())
            made = self._made() | dict.fromkeys(row, self.digest(row))
            self._kept.write_text(json.dumps(made, indent=1))
            good(", ".join(row))

    def _write_module(self) -> None:
        self._module.mkdir(parents=True, exist_ok=True)
        for folder in ("e2e", "agnhost"):
            (self._module / folder).mkdir(exist_ok=True)
            shutil.copy(OWN / folder / "main.go", self._module / folder)
        file = self._module / "go.mod"
        first = "module kube\n\ngo 1.26.0\n"
        if not file.exists():
            file.write_text(first)
        told = json.loads(self._go("mod", "download", "-json", f"k8s.io/kubernetes@{VERSION}", timeout_s=900))
        staging = re.findall(r"^\t(k8s\.io/[a-z-]+) => \./staging", Path(told["Dir"], "go.mod").read_text(), re.MULTILINE)
        part = VERSION.replace("v1.", "v0.", 1)
        required = "".join(f"\t{name} {version}\n" for name, version in MODULES.items())
        replaced = "".join(f"\t{name} => {name} {part}\n" for name in staging)
        wanted = f"{first}\nrequire (\n{required})\n\nreplace (\n{replaced})\n"
        stamp = self._module / "go.mod.wanted"
        if not stamp.exists() or stamp.read_text() != wanted:  # go itself adds to go.mod what is needed indirectly
            file.write_text(wanted)
            stamp.write_text(wanted)


def go() -> Path:
    """The go that is new enough; BuildError with what to do where there is none."""
    found = shutil.which("go") or next((path for path in ("/usr/local/go/bin/go",) if os.path.exists(path)), None)
    needed = ".".join(map(str, GO_MIN))
    if found is None:
        raise BuildError(f"go is not installed: Kubernetes {VERSION} is built from source with Go {needed} or later (https://go.dev/dl)")
    said = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    numbers = tuple(int(word) for word in re.findall(r"\d+", said)[:2])
    if numbers < GO_MIN:
        raise BuildError(f"{found} is {said or 'of no version'}; Kubernetes {VERSION} needs Go {needed} or later (https://go.dev/dl)")
    return Path(found)


def build_own(rig: Rig) -> None:
    """The two small programs in C: process 1 of nodes and sandboxes, and the writer that checks."""
    for name in ("init", "writer"):
        source, made = OWN / f"{name}.c", rig.bin / name
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            words = ["gcc", "-O2", "-static", "-Wall", "-Werror", "-o", str(made), str(source)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError(f"gcc {source.name}: {done.stderr.strip()[-800:]}")
