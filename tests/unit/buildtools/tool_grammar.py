"""What kind 0.24, kubectl 1.31 and helm 3.16 take on their command lines, as their reference pages say, for the commands that are used.

The scripts that stand in for them refuse what the tools would: an unknown command or flag, a flag without its value, too many or too few
words, a duration without a unit, a file that is not there, and objects on stdin that are none.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

_DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+")


class Command(NamedTuple):
    """`flags`: name → what its value is ("": it has none); `least` to `most` further words."""

    flags: dict[str, str]
    least: int = 0
    most: int = 0


GLOBAL: dict[str, dict[str, str]] = {
    "docker": {},
    "podman": {},
    "kind": {"--quiet": "", "-q": "", "--verbosity": "number", "-v": "number"},
    "kubectl": {"--context": "text", "--kubeconfig": "text", "--namespace": "text", "-n": "text", "--request-timeout": "duration"},
    "helm": {"--kube-context": "text", "--kubeconfig": "text", "--namespace": "text", "-n": "text", "--debug": ""},
}
_MADE = {"--config": "file", "--name": "text", "--image": "text", "--kubeconfig": "text", "--retain": "", "--wait": "duration"}
COMMANDS: dict[tuple[str, ...], Command] = {
    ("docker", "info"): Command({"--format": "text", "-f": "text"}),
    ("podman", "info"): Command({"--format": "text", "-f": "text"}),
    ("kind", "get", "clusters"): Command({}),
    ("kind", "create", "cluster"): Command(_MADE),
    ("kind", "delete", "cluster"): Command({"--name": "text", "--kubeconfig": "text"}),
    ("kind", "load", "image-archive"): Command({"--name": "text", "--nodes": "text"}, 1, 1),
    ("kubectl", "apply"): Command({"-f": "file", "--filename": "file", "--server-side": ""}),
    ("kubectl", "create"): Command({"-f": "file", "--filename": "file", "--save-config": ""}),
    ("kubectl", "get"): Command({"-o": "output", "--output": "output", "--ignore-not-found": "", "-l": "text", "-A": ""}, 1, 2),
    ("kubectl", "rollout", "status"): Command({"--timeout": "duration", "--watch": ""}, 1, 2),
    ("helm", "upgrade"): Command(
        {
            "--install": "", "-i": "", "--set": "pairs", "--set-string": "pairs", "-f": "file", "--values": "file", "--wait": "",
            "--timeout": "duration", "--create-namespace": "", "--atomic": "",
        }, 2, 2,
    ),
}  # fmt: skip
OUTPUTS = ("name", "json", "yaml", "wide")


def refusal(argv: list[str], stdin: str) -> str:
    """Why the tool would refuse this call; "" if it would not."""
    tool = argv[0]
    flags = dict(GLOBAL.get(tool, {}))
    words: list[str] = []
    given: list[tuple[str, str]] = []
    rest = iter(argv[1:])
    for word in rest:
        command = COMMANDS.get((tool, *words))
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        known = flags | (_longest(tool, words) or command or Command({})).flags
        if name not in known:
            return f"unknown flag: {name}"
        if known[name] and not equals:
            value = next(rest, "")
            if not value or value.startswith("--"):
                return f"flag needs an argument: {name}"
        given.append((known[name], value))
    command = _longest(tool, words)
    if command is None:
        return f"unknown command: {' '.join(argv)}"
    count = len(words) - next(len(names) - 1 for names in COMMANDS if COMMANDS[names] is command)
    if not command.least <= count <= command.most:
        return f"takes {command.least} to {command.most} words, not {count}"
    return next((why for kind, value in given if (why := _wrong(kind, value, stdin))), "") or _wrong_words(tool, words)


def _longest(tool: str, words: list[str]) -> Command | None:
    found = (COMMANDS.get((tool, *words[:count])) for count in range(len(words), 0, -1))
    return next((command for command in found if command is not None), None)


def _wrong(kind: str, value: str, stdin: str) -> str:
    if kind == "duration" and not _DURATION.fullmatch(value):
        return f"invalid duration: {value}"
    if kind == "pairs" and not all("=" in pair for pair in value.split(",")):
        return f"no key=value: {value}"
    if kind == "output" and value not in OUTPUTS and not _is_jsonpath(value):
        return f"unknown output: {value}"
    if kind == "number" and not value.isdecimal():
        return f"no number: {value}"
    if kind == "file":
        return _no_object(stdin) if value == "-" else "" if os.path.exists(value) else f"no such file: {value}"
    return ""


def _is_jsonpath(value: str) -> bool:
    text = value.removeprefix("jsonpath=")
    balanced = all(text.count(one) == text.count(other) for one, other in ("{}", "[]", "()"))
    return text != value and text.startswith("{") and text.endswith("}") and balanced


def _no_object(stdin: str) -> str:
    import yaml  # here, because each stand-in is a process of its own

    try:
        made: Any = yaml.safe_load(stdin)
    except yaml.YAMLError as err:
        return f"stdin: {err}"
    if not isinstance(made, dict) or not made.get("apiVersion") or not made.get("kind"):
        return "stdin: no object with apiVersion and kind"
    if made["kind"] == "Cluster":
        return _no_cluster(made)
    return "" if made.get("metadata", {}).get("name") else "stdin: an object without a name"


def _no_cluster(made: dict[str, Any]) -> str:
    """kind's own; it refuses fields that it does not know."""
    unknown = set(made) - {"apiVersion", "kind", "name", "nodes", "networking", "featureGates", "kubeadmConfigPatches"}
    if made["apiVersion"] != "kind.x-k8s.io/v1alpha4" or unknown:
        return f"no cluster of kind: {made['apiVersion']} {sorted(unknown)}"
    for node in made["nodes"]:
        mounts = [key for mount in node.get("extraMounts", []) for key in mount]
        unknown = set(node) - {"role", "image", "extraMounts", "extraPortMappings", "kubeadmConfigPatches", "labels"}
        unknown |= set(mounts) - {"hostPath", "containerPath", "readOnly", "selinuxRelabel", "propagation"}
        if node.get("role") not in ("control-plane", "worker") or unknown:
            return f"no node of kind: {node}"
    return ""


def _wrong_words(tool: str, words: list[str]) -> str:
    if tool == "helm" and not os.path.exists(os.path.join(words[2], "Chart.yaml")):
        return f"no chart: {words[2]}"
    if words[:2] == ["load", "image-archive"] and not os.path.exists(words[2]):
        return f"no such file: {words[2]}"
    return ""
