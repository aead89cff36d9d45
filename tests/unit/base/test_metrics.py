"""Metrics, logs and sockets, which every process has, import little."""

from __future__ import annotations

import subprocess
import sys


def test_counters_do_not_import_prometheus() -> None:
    code = "import sys, awsomefsd.base.metrics, awsomefsd.base.log, awsomefsd.base.sockets\n"
    code += "assert not {'prometheus_client', 'trio', 'pydantic', 'json'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
