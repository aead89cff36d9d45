"""build.py dev-env and deploy: what is said where a tool is missing, and which commands are run where all are there.

The tools are scripts, which refuse what the real ones would (tool_grammar.py); what the real ones do is not tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from buildtools import binary, kind, loops
from buildtools.say import CHECKOUT, BuildError
from tests.unit.buildtools.tool_grammar import refusal

Tools = Callable[..., Path]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Puts scripts of these names, and nothing else, into PATH; each says what `says` has for it and notes its call."""
    place, calls = tmp_path / "bin", tmp_path / "calls"
    place.mkdir()
    calls.touch()

    def make(*names: str, **says: str) -> Path:
        for name in names:
            script = place / name
            script.write_text(
                f"#!{sys.executable}\nimport json, os, sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n"
                f"from tests.unit.buildtools.tool_grammar import refusal\nwords = sys.argv\n"
                f"stdin = sys.stdin.read() if '-' in words else ''\n"
                f"if why := refusal([{name!r}, *words[1:]], stdin):\n    sys.exit(why)\n"
                f"open({str(calls)!r}, 'a').write(json.dumps([{name!r}, *words[1:], stdin]) + '\\n')\n"
                f"says = {says!r}\n"
                f"print(next((text for word, text in says.items() if word in words), ''))\n"
            )
            script.chmod(0o755)
        monkeypatch.setenv("PATH", str(place))
        return calls

    return make


def calls_of(path: Path) -> list[list[str]]:
    return [json.loads(row) for row in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("kind create clusters", "unknown command"),
        ("kind create cluster --config", "needs an argument"),
        ("kind create cluster --wait 300", "invalid duration"),
        ("kind create cluster --wait-for 300s", "unknown flag"),
        ("kind load image-archive", "1 to 1 words"),
        ("kind load image-archive /nowhere.tar", "no such file"),
        ("kubectl --contxt kind-a get nodes", "unknown flag"),
        ("kubectl get nodes -o jsonpath={.items[*}", "unknown output"),
        ("kubectl create -f /nowhere.json", "no such file"),
        ("kubectl apply -f -", "no object"),
        ("helm upgrade --install awsomefs", "2 to 2 words"),
        ("helm upgrade awsomefs /nowhere --set-string image", "no key=value"),
        ("helm upgrade awsomefs /nowhere", "no chart"),
        ("docker inform", "unknown command"),
    ],
)
def test_the_stand_ins_refuse_what_the_tools_refuse(call: str, why: str) -> None:
    assert why in refusal(call.split(), "")


def test_what_is_missing_is_named(tools: Tools, tmp_path: Path) -> None:
    tools()
    with pytest.raises(BuildError, match=r"kind \(https://kind.*kubectl"):
        kind.dev_env(tmp_path / "d", 1 << 30)
    with pytest.raises(BuildError, match=r"helm"):
        kind.deploy()
    tools("kind", "kubectl", "helm")
    with pytest.raises(BuildError, match="neither docker nor podman"):
        kind.dev_env(tmp_path / "d", 1 << 30)
    assert not (tmp_path / "d").exists()


def test_the_command_line_says_it_in_one_line() -> None:
    argv = [sys.executable, str(CHECKOUT / "build.py"), "deploy"]
    done = subprocess.run(argv, env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "not installed: kind" in done.stderr and "Traceback" not in done.stderr


def test_three_nodes_see_one_device() -> None:
    nodes = yaml.safe_load(kind.config("/dev/loop9"))["nodes"]
    assert len(nodes) == kind.NODES
    assert all(node["extraMounts"] == [{"hostPath": "/dev/loop9", "containerPath": "/dev/awsomefs-disk"}] for node in nodes)


def test_dev_env_and_its_removal(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, place = tools("docker", "kind", "kubectl"), tmp_path / "d"
    monkeypatch.setattr(loops, "usable", lambda: True)
    monkeypatch.setattr(loops, "attach", lambda image: "/dev/loop9")
    assert kind.dev_env(place, 1 << 30) == 0
    made = next(call for call in calls_of(calls) if call[:3] == ["kind", "create", "cluster"])
    assert "/dev/loop9" in made[-1] and (place / "device.img").stat().st_size == 1 << 30
    (tmp_path / "other").mkdir()
    kind.remove(tmp_path / "other")
    assert (tmp_path / "other").exists(), "not one of ours"
    kind.remove(place)
    assert not place.exists()


def test_deploy_shows_no_token_in_arguments(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "directory", lambda: tmp_path / "dist")
    monkeypatch.setattr(binary, "version", lambda: "0.0.9")
    calls = tools("docker", "kind", "kubectl", "helm", clusters=kind.CLUSTER, nodes="10.0.0.1 10.0.0.2")
    with pytest.raises(BuildError, match="image makes it"):
        kind.deploy()
    (tmp_path / "dist.oci.tar").touch()
    assert kind.deploy() == 0
    made = calls_of(calls)
    secret = next(json.loads(call[-1]) for call in made if "create" in call)
    assert secret["stringData"]["token"].startswith("afs1-")
    assert all("afs1-" not in word for call in made for word in call[:-1])
    assert made[-2][0] == "helm" and any("image-archive" in call and str(tmp_path / "dist.oci.tar") in call for call in made)
