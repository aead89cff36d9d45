"""The alert rules: Prometheus' own tool reads them, each fires for its fault and rests without it, and every health code has one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from awsomefsd.node.health.codes import CODES, ERROR, WARNING
from buildtools.say import CHECKOUT
from tests.rigs.metrics_page import MISSING, PROMTOOL

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason=MISSING)
RULES = CHECKOUT / "docs" / "examples" / "prometheus" / "rules.yaml"
AT = "100m"  # when the alerts are asked for
NODE = 'instance="a"'
# alert: series with the fault, and without it; "A+BxN" begins with A and grows by B each minute
FAULTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "AwsomefsNodeDown": ({f'up{{job="awsomefs",{NODE}}}': "0+0x120"}, {f'up{{job="awsomefs",{NODE}}}': "1+0x120"}),
    "AwsomefsMountDown": ({f"awsomefsd_mount_up{{{NODE}}}": "0+0x120"}, {f"awsomefsd_mount_up{{{NODE}}}": "1+0x120"}),
    "AwsomefsWorkersDie": (
        {f"awsomefsd_mount_workers_total{{{NODE}}}": "1+1x120"},
        {f"awsomefsd_mount_workers_total{{{NODE}}}": "4+0x120"},
    ),
    "AwsomefsCorruptReads": (
        {f"awsomefsd_worker_corrupt_reads_total{{{NODE}}}": "1+0x120"},
        {f"awsomefsd_worker_corrupt_reads_total{{{NODE}}}": "0+0x120"},
    ),
    "AwsomefsBufferedDataBecameConflict": (
        {f"awsomefsd_worker_files_put_aside_total{{{NODE}}}": "1+0x120"},
        {f"awsomefsd_worker_files_put_aside_total{{{NODE}}}": "0+0x120", f"awsomefsd_conflict_files{{{NODE}}}": "0+0x120"},
    ),
    "AwsomefsDeviceFilling": (
        {'awsomefsd_device_segments_free{device="1"}': "11+0x120", 'awsomefsd_device_segments{device="1"}': "100+0x120"},
        {'awsomefsd_device_segments_free{device="1"}': "12+0x120", 'awsomefsd_device_segments{device="1"}': "100+0x120"},
    ),
    "AwsomefsVolumeFilling": (
        {'awsomefsd_volume_used_bytes{volume="v"}': "91+0x120", 'awsomefsd_volume_quota_bytes{volume="v"}': "100+0x120"},
        {'awsomefsd_volume_used_bytes{volume="v"}': "91+0x120", 'awsomefsd_volume_quota_bytes{volume="v"}': "0+0x120"},
    ),
    "AwsomefsElections": ({f"awsomefsd_term{{{NODE}}}": "1+1x120"}, {f"awsomefsd_term{{{NODE}}}": "9+0x120"}),
    "AwsomefsJournalSlow": (
        {
            f"awsomefsd_meta_journal_sync_seconds_total{{{NODE}}}": "0+11x120",
            f"awsomefsd_meta_journal_syncs_total{{{NODE}}}": "0+100x120",
        },
        {
            f"awsomefsd_meta_journal_sync_seconds_total{{{NODE}}}": "0+9x120",
            f"awsomefsd_meta_journal_syncs_total{{{NODE}}}": "0+100x120",
        },
    ),
    "AwsomefsScrubOld": (
        {f"awsomefsd_scrub_verified_seconds{{{NODE}}}": f"{-57 * 86_400}+0x120"},
        {f"awsomefsd_scrub_verified_seconds{{{NODE}}}": f"{-55 * 86_400}+0x120"},
    ),
    "AwsomefsStrangersKnock": (
        {f"awsomefsd_meta_port_handshakes_failed_total{{{NODE}}}": "0+61x120"},
        {f"awsomefsd_meta_port_handshakes_failed_total{{{NODE}}}": "0+59x120"},
    ),
    "AwsomefsFiguresMissing": (
        {f"awsomefsd_scrape_errors_total{{{NODE}}}": "0+1x120"},
        {f"awsomefsd_scrape_errors_total{{{NODE}}}": "3+0x120"},
    ),
}


def alerts() -> dict[str, Any]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def tool(*words: str) -> str:
    done = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def case(alert: str, series: dict[str, str], fires: int) -> dict[str, Any]:
    """A test of promtool: how often an alert fires for these series."""
    count = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": count, "eval_time": AT, "exp_samples": [{"labels": "{}", "value": fires}]}],
    }


def passes(tmp_path: Path, cases: list[dict[str, Any]]) -> None:
    file = tmp_path / "cases.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": cases}))  # JSON is YAML
    tool("test", "rules", str(file))


def test_the_rules_are_understood() -> None:
    assert f"{len(alerts())} rules found" in tool("check", "rules", str(RULES))


@pytest.mark.parametrize("alert", FAULTS)
def test_each_fires_for_its_fault_and_rests_without(alert: str, tmp_path: Path) -> None:
    fault, sound = FAULTS[alert]
    passes(tmp_path, [case(alert, fault, 1), case(alert, sound, 0)])


def test_a_case_that_is_wrong_is_not_passed(tmp_path: Path) -> None:
    fault, _ = FAULTS["AwsomefsMountDown"]
    with pytest.raises(AssertionError, match="AwsomefsMountDown"):
        passes(tmp_path, [case("AwsomefsMountDown", fault, 0)])


def test_none_is_left_out() -> None:
    assert {*FAULTS, "AwsomefsError", "AwsomefsWarning"} == set(alerts())


def test_every_health_code_raises_an_alert_of_its_severity(tmp_path: Path) -> None:
    """Those of information do not; those that only the doctor finds are no metric."""
    cases = []
    shown = [code for code in CODES.values() if not code.doctor]
    for code in shown:
        series = f'awsomefsd_health{{{NODE},code="{code.name}",severity="{code.severity}"}}'
        for alert, severity in (("AwsomefsError", ERROR), ("AwsomefsWarning", WARNING)):
            cases.append(case(alert, {series: "1+0x120"}, int(code.severity == severity)))
            cases.append(case(alert, {series: "0+0x120"}, 0))
    assert len(shown) > 20
    passes(tmp_path, cases)
