"""docs/MONITORING.md names every metric that the code has, and no other; its alert rules, and the dashboard, use none that is not there.

The names are read from the code: literals that begin with "awsomefsd_", counters of a mount's control area, and the keys of dictionaries in
functions called figures or named, or of modules called figures.  node/health/figures.py says what each of these is called on the
metrics page.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from awsomefsd.base import power_cut
from awsomefsd.fuse.abi import Opcode
from awsomefsd.meta.server.leases.lease_recalls import RECALL_BOUNDS_MS
from awsomefsd.node.health import figures as described
from buildtools.say import CHECKOUT

PACKAGE = CHECKOUT / "awsomefsd"
PAGE = CHECKOUT / "docs" / "MONITORING.md"
RULES = CHECKOUT / "docs" / "examples" / "prometheus" / "rules.yaml"
DASHBOARD = CHECKOUT / "packaging" / "helm" / "awsomefs" / "dashboards" / "awsomefs.json"
WORDS = {"checkpoint", "role", "leader", "founding_waits_for"}  # figures that are no numbers: status shows them, no metric does
NOT_SHOWN = {"control_connections", "control_dropped", "control_refused", "control_turned_away"}  # figures that nobody asks for
OF_CLUSTER = {"leader_known", "term", "level", "voters", "voters_heard", "failures_survived"}
_NAME = re.compile(r"\bawsomefsd_[A-Za-z0-9_]+")


def _literals(text: str) -> set[str]:
    return {name for name in re.findall(r'"(awsomefsd_[a-z0-9_]+)"', text) if not name.endswith("_")}


def _keys(path: Path, text: str) -> Iterator[str]:
    """Constant keys of dictionaries in functions that tell figures."""
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and (function.name.endswith(("figures", "named")) or path.name == "figures.py"):
            for node in ast.walk(function):
                if isinstance(node, ast.Dict):
                    yield from (key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def _prefix(path: Path) -> str:
    """As admin/status.py chooses it."""
    folder = path.relative_to(PACKAGE).parts
    if folder[:2] == ("io", "pool"):
        return ""  # the segment server's have the whole name
    return "worker_" if folder[0] in ("worker", "vfs") else "collect_" if folder[:2] == ("io", "collect") else "meta_"


def _described(figure: str) -> str:
    sample = described.sample(figure, 0)
    assert sample.help != described.UNKNOWN, f"node/health/figures.py has no {figure}"
    return sample.name


def metrics() -> set[str]:
    """Every name of a metric, "awsomefsd_…"."""
    found = {f"awsomefsd_{name}" for name in OF_CLUSTER} | {f"awsomefsd_{name}" for _, name, _, _ in described.FAMILIES}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        found |= _literals(text)
        if path == Path(described.__file__):
            continue
        if path.relative_to(PACKAGE).parts[0] in ("worker", "vfs", "io", "meta", "node", "cluster"):
            keys = {f"{_prefix(path)}{key}" for key in _keys(path, text) if key not in WORDS | NOT_SHOWN}
            found |= {_described(key) for key in keys}
        counters = re.findall(r'control\.counter\("([a-z_]+)"\)', text)
        found |= {_described(f"worker_{name}") for name in counters}
    return found | {_described(f"worker_{name}") for name in (power_cut.DECIDES, power_cut.WHY)}


def _in_queries() -> set[str]:
    """The same as queries name them: of a histogram its three parts."""
    kinds = documented()
    return {f"{name}{part}" for name in metrics() for part in (("_bucket", "_sum", "_count") if kinds[name] == "histogram" else ("",))}


def documented() -> dict[str, str]:
    """Name → type, of the tables of the page."""
    rows = re.findall(r"^\| `(awsomefsd_[A-Za-z0-9_]+)` \| ([a-z, ]+) \|", PAGE.read_text(), re.M)
    assert len(rows) == len(dict(rows)), "a metric is described once"
    return dict(rows)


def test_every_metric_is_described_and_no_other() -> None:
    assert sorted(documented()) == sorted(metrics())


def test_families_are_there() -> None:
    """What stands for several names is made so in the code."""
    assert 'counter(f"fuse_{op.name.lower()}")' in (PACKAGE / "fuse" / "session.py").read_text() and Opcode.READ
    lags = (PACKAGE / "meta" / "voter" / "status.py").read_text()
    assert 'f"lag_{' in lags and 'f"silent_ms_{' in lags
    assert f"({', '.join(f'{bound / 1_000:g}' for bound in RECALL_BOUNDS_MS)})" in PAGE.read_text()
    for figure in ("worker_fuse_read", "meta_lag_0c8e7c99-5bd6", "meta_silent_ms_0c8e7c99-5bd6", "meta_lease_recalls_within_3ms"):
        assert described.sample(figure, 1).labels


def test_types() -> None:
    for name, kind in documented().items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert kind in ("gauge", "gauge, grows", "counter") or (kind == "histogram" and name.endswith("_seconds")), name


def test_the_page_says_what_prometheus_is_told() -> None:
    rows = dict(re.findall(r"^\| `awsomefsd_([a-z0-9_]+)` \| [a-z, ]+ \| (.*) \|$", PAGE.read_text(), re.M))
    kinds = documented()
    for figure, means in {**described.COUNTERS, **described.GAUGES}.items():
        sample = described.sample(figure, 0)
        assert rows[sample.name.removeprefix("awsomefsd_")].replace("`", "") == means
        assert kinds[sample.name].startswith(sample.kind) and sample.help == means


def test_no_figure_is_described_that_is_not_there() -> None:
    assert {described.sample(figure, 0).name for figure in {**described.COUNTERS, **described.GAUGES}} <= metrics()


def test_rules_use_metrics_that_are_there() -> None:
    known = _in_queries()
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names))
    for rule in group["rules"]:
        used = set(_NAME.findall(rule["expr"]))
        assert used <= known and (used or "up{" in rule["expr"]), rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "action"}


def test_the_page_lists_the_rules() -> None:
    listed = re.findall(r"^\| (Awsomefs[A-Za-z]+) \|", PAGE.read_text(), re.M)
    assert listed == [rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]


def test_the_dashboard_uses_metrics_that_are_there() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    used = {name for panel in panels for target in panel.get("targets", ()) for name in _NAME.findall(target["expr"])}
    assert used and used <= _in_queries()
    assert len(panels) == 18 and "eighteen panels" in PAGE.read_text()
