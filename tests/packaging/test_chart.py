"""The Helm chart: what helm says of it, what it renders, and that it names settings and metrics that exist.

helm comes as a Go module; where it cannot be had, the tests that need it are skipped with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from awsomefsd import __version__
from awsomefsd.cli.main import cli
from awsomefsd.config.settings import PREFIX, key_paths, load
from awsomefsd.csi.settings import DRIVER
from buildtools import image

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "packaging" / "helm" / "awsomefs"
RENDERED = ROOT / "packaging" / "k8s" / "awsomefs.yaml"
HELM = "helm.sh/helm/v3/cmd/helm@v3.16.4"
OF_THE_PACKAGE = ["--set", "existingTokenSecret=awsomefs-token", "--namespace", "awsomefs", "--set", "namespace.create=true"]
TEMPLATE = ["template", "awsomefs", str(CHART), "--kube-version", "1.30.0"]  # helm as a Go module believes in an old one
VERSIONS = ["1.30", "1.36"]  # the oldest that the package has, and a late one
INSTALL_S = 900
TOKEN = "afs1-" + "a" * 40


@cache
def helm() -> str:
    found = shutil.which("helm") or shutil.which("helm", path=os.path.expanduser("~/go/bin"))
    if found:
        return found
    go = shutil.which("go")
    if go is None:
        pytest.skip("neither helm nor go is installed")
    done = subprocess.run([go, "install", HELM], capture_output=True, text=True, timeout=INSTALL_S, check=False)
    place = subprocess.run([go, "env", "GOPATH"], capture_output=True, text=True, check=True).stdout.strip()
    found = shutil.which("helm", path=f"{place}/bin")
    if done.returncode or not found:
        pytest.skip(f"helm cannot be installed as a Go module: {done.stderr.strip()[-300:]}")
    return found


def run(*words: str, fails: bool = False) -> str:
    done = subprocess.run([helm(), *words], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode != 0) == fails, done.stderr + done.stdout
    return done.stderr if fails else done.stdout


def rendered(*words: str) -> dict[tuple[str, str], dict]:
    """By kind and name."""
    made = [one for one in yaml.safe_load_all(run(*TEMPLATE, *words)) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in made}


@pytest.mark.timeout(INSTALL_S + 100)
def test_helm_finds_no_fault() -> None:
    assert "0 chart(s) failed" in run("lint", "--strict", str(CHART), "--set", f"token={TOKEN}")


@pytest.mark.timeout(INSTALL_S + 100)
def test_a_wrong_value_is_refused_with_a_word() -> None:
    assert "awsomefsd token generate" in run(*TEMPLATE, fails=True)
    for wrong, word in (
        ("token=rubbish", "token"),
        ("kubeletDir=relative", "kubeletDir"),
        ("driver.healthApi=1.14", "healthApi"),
        ("ports.control=0", "control"),
        ("nodee.labels.a=b", "nodee"),
    ):
        assert word in run(*TEMPLATE, "--set", f"token={TOKEN}", "--set-string" if "healthApi" in wrong else "--set", wrong, fails=True)


@pytest.mark.timeout(INSTALL_S + 100)
def test_the_node_pod_can_do_its_work_and_tells_no_secret() -> None:
    made = rendered("--set", f"token={TOKEN}", "--set", "kubeletDir=/other/kubelet")
    assert [key for key, one in made.items() if TOKEN in json.dumps(one)] == [("Secret", "awsomefs-token")]
    pod = made["DaemonSet", "awsomefs-node"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert pod["hostNetwork"] and pod["hostPID"] and pod["priorityClassName"] == "system-node-critical"
    assert container["securityContext"] == {"privileged": True}
    assert mounts["kubelet"]["mountPropagation"] == "Bidirectional" and mounts["kubelet"]["mountPath"] == "/other/kubelet"
    assert pod["tolerations"] == [{"operator": "Exists"}] and "limits" not in container["resources"]
    assert {"name": "AWSOMEFSD_CSI_SOCKET", "value": "/other/kubelet/plugins/csi.awsomefs.io/csi.sock"} in container["env"]
    controller = made["Deployment", "awsomefs-controller"]["spec"]["template"]["spec"]
    assert {one["name"] for one in controller["containers"]} == {"provisioner", "resizer"}
    provisioner = next(one for one in controller["containers"] if one["name"] == "provisioner")
    assert {"--capacity-for-immediate-binding", "--extra-create-metadata", "--enable-capacity"} <= set(provisioner["args"])
    assert not any("--feature-gates" in word for one in controller["containers"] for word in one["args"]), "what is GA has no gate any more"
    driver = made["CSIDriver", DRIVER]["spec"]
    wanted = {"podInfoOnMount": False, "storageCapacity": True, "seLinuxMount": False, "fsGroupPolicy": "File"}
    assert wanted.items() <= driver.items()
    assert all("--leader-election" in one["args"] and "--node-deployment" not in one["args"] for one in controller["containers"])
    assert not any(one["image"].endswith((":latest", ":")) for one in [*controller["containers"], container])


def allowed(role: dict, group: str, resource: str) -> set[str]:
    return {verb for rule in role["rules"] if group in rule["apiGroups"] and resource in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.timeout(INSTALL_S + 100)
def test_capacity_and_attributes_have_what_their_sidecars_need() -> None:
    """The objects belong to the Deployment, two levels above the pod; its name and namespace come by the environment."""
    made = rendered("--set", f"token={TOKEN}")
    containers = made["Deployment", "awsomefs-controller"]["spec"]["template"]["spec"]["containers"]
    [provisioner] = [one for one in containers if one["name"] == "provisioner"]
    assert "--capacity-ownerref-level=2" in provisioner["args"]
    env = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in provisioner["env"] if "valueFrom" in one}
    assert env.items() >= {"NAMESPACE": "metadata.namespace", "POD_NAME": "metadata.name"}.items()
    role, everywhere = made["Role", "awsomefs-controller"], made["ClusterRole", "awsomefs-controller"]
    assert allowed(role, "storage.k8s.io", "csistoragecapacities") >= {"get", "list", "watch", "create", "update", "patch", "delete"}
    assert "get" in allowed(role, "", "pods") and "get" in allowed(role, "apps", "replicasets")
    for resource in ("csinodes", "storageclasses", "volumeattributesclasses"):
        assert allowed(everywhere, "storage.k8s.io", resource) >= {"get", "list", "watch"}


@pytest.mark.timeout(INSTALL_S + 100)
def test_inline_volumes_are_off_until_they_are_switched_on() -> None:
    """podInfoOnMount: without it kubelet does not tell the driver that a volume is inline."""
    chosen = ("--set", f"token={TOKEN}", "--set", "driver.inlineVolumes.enabled=true", "--set", "driver.inlineVolumes.maxSize=2GiB")
    for words, modes in (((*chosen[:2],), ["Persistent"]), (chosen, ["Persistent", "Ephemeral"])):
        made = rendered(*words)
        driver, on = made["CSIDriver", DRIVER], len(modes) == 2
        assert (driver["spec"]["volumeLifecycleModes"], driver["spec"]["podInfoOnMount"]) == (modes, on)
        assert ("security.openshift.io/csi-ephemeral-volume-profile" in driver["metadata"]["labels"]) == on
        [container] = made["DaemonSet", "awsomefs-node"]["spec"]["template"]["spec"]["containers"]
        asked = {one["name"]: one.get("value") for one in container["env"] if "INLINE" in one["name"]}
        assert asked == ({"AWSOMEFSD_CSI_INLINE": "true", "AWSOMEFSD_CSI_INLINE_MAX": "2GiB"} if on else {})


@pytest.mark.timeout(INSTALL_S + 100)
def test_selectors_choose_their_pods() -> None:
    made = rendered("--set", f"token={TOKEN}", "--set", "metrics.serviceMonitor.enabled=true", "--set", "metrics.dashboard.enabled=true")
    node, controller = made["DaemonSet", "awsomefs-node"]["spec"], made["Deployment", "awsomefs-controller"]["spec"]
    labels = {name: spec["template"]["metadata"]["labels"] for name, spec in (("node", node), ("controller", controller))}
    keeper = made["Deployment", "awsomefs-node-keeper"]["spec"]
    labels["node-keeper"] = keeper["template"]["metadata"]["labels"]
    chosen = [
        ("node-keeper", keeper["selector"]["matchLabels"]),
        ("node-keeper", made["NetworkPolicy", "awsomefs-node-keeper"]["spec"]["podSelector"]["matchLabels"]),
        ("node", node["selector"]["matchLabels"]),
        ("controller", controller["selector"]["matchLabels"]),
        ("controller", made["PodDisruptionBudget", "awsomefs-controller"]["spec"]["selector"]["matchLabels"]),
        ("controller", made["NetworkPolicy", "awsomefs-controller"]["spec"]["podSelector"]["matchLabels"]),
        ("node", made["Service", "awsomefs-metrics"]["spec"]["selector"]),
    ]
    for name, wanted in chosen:
        assert [pod for pod, has in labels.items() if wanted.items() <= has.items()] == [name]


@pytest.mark.timeout(INSTALL_S + 100)
def test_the_keeper_of_nodes_may_do_no_more_than_it_has_to() -> None:
    """One Secret by its name, the names of nodes, and neither of them for the privileged pods."""
    made = rendered("--set", f"token={TOKEN}", "--set", "nodeKeeper.role=client", "--set", "nodeKeeper.removeAfter=7d")
    account = made["Deployment", "awsomefs-node-keeper"]["spec"]["template"]["spec"]
    [container] = account["containers"]
    assert {"--secret=awsomefs-join-token", "--role=client", "--remove-after=7d", "--uses=32", "--ttl=24h"} <= set(container["args"])
    assert container["securityContext"]["readOnlyRootFilesystem"] and account["serviceAccountName"] == "awsomefs-node-keeper"
    assert all(one["readOnly"] for one in container["volumeMounts"]), "it connects to a socket there, which needs no write"
    [right] = made["Role", "awsomefs-node-keeper"]["rules"]
    assert right == {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["awsomefs-join-token"], "verbs": ["get", "update"]}
    assert made["ClusterRole", "awsomefs-node-keeper"]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    others = [one for (kind, name), one in made.items() if kind.endswith("Role") and name != "awsomefs-node-keeper"]
    assert others and "secrets" not in json.dumps(others)
    assert made["ServiceAccount", "awsomefs-node"]["automountServiceAccountToken"] is False
    secret = made["Secret", "awsomefs-join-token"]
    assert "data" not in secret and "stringData" not in secret, "what is applied again would overwrite the token"
    pod = made["DaemonSet", "awsomefs-node"]["spec"]["template"]["spec"]
    [mounted] = [one["secret"] for one in pod["volumes"] if one["name"] == "join"]
    assert mounted["optional"], "a pod starts without it"
    assert mounted["items"] == [{"key": "token", "path": "token"}]


@pytest.mark.timeout(INSTALL_S + 100)
def test_the_keeper_of_nodes_is_behind_its_switches() -> None:
    made = rendered("--set", f"token={TOKEN}", "--set", "nodeKeeper.enabled=false")
    assert [key for key in made if key[1] in ("awsomefs-node-keeper", "awsomefs-join-token")] == []
    assert "JOIN_TOKEN" not in json.dumps(made["DaemonSet", "awsomefs-node"])
    made = rendered("--set", f"token={TOKEN}", "--set", "nodeKeeper.removeAfter=off")
    assert ("Role", "awsomefs-node-keeper") in made and ("ClusterRole", "awsomefs-node-keeper") not in made
    for word in ("removeAfter=soon", "removeAfter=0s", "ttl=5m", "ttl=599s", "ttl=0h"):  # the keeper would refuse them, again and again
        assert word.partition("=")[0] in run(*TEMPLATE, "--set", f"token={TOKEN}", "--set", f"nodeKeeper.{word}", fails=True)
    for word in ("removeAfter=90s", "ttl=10m", "ttl=600s", "ttl=1h", "ttl=30d"):
        rendered("--set", f"token={TOKEN}", "--set", f"nodeKeeper.{word}")


@pytest.mark.timeout(INSTALL_S + 100)
def test_attach_and_snapshots_are_behind_their_switches() -> None:
    made = rendered("--set", f"token={TOKEN}", "--set", "driver.attachRequired=true", "--set", "sidecars.snapshotterEnabled=true")
    names = {one["name"] for one in made["Deployment", "awsomefs-controller"]["spec"]["template"]["spec"]["containers"]}
    assert names == {"provisioner", "resizer", "attacher", "snapshotter"}
    assert made["CSIDriver", "csi.awsomefs.io"]["spec"]["attachRequired"] is True
    without = json.dumps(rendered("--set", f"token={TOKEN}")["ClusterRole", "awsomefs-controller"])
    assert "volumeattachments" not in without and "snapshot.storage.k8s.io" not in without


@pytest.mark.timeout(INSTALL_S + 100)
def test_probes_start_no_process_where_the_page_of_metrics_is_served() -> None:
    for served, how in (("true", "httpGet"), ("false", "exec")):
        made = rendered("--set", f"token={TOKEN}", "--set", f"metrics.enabled={served}")["DaemonSet", "awsomefs-node"]
        [container] = made["spec"]["template"]["spec"]["containers"]
        probes = [container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
        assert all(how in probe for probe in probes)
        if how == "httpGet":
            assert [probe[how]["path"] for probe in probes] == ["/healthz", "/healthz", "/readyz"]
        else:
            assert [probe[how]["command"][1:] for probe in probes] == [["probe"], ["probe"], ["probe", "--ready"]]


@pytest.mark.timeout(INSTALL_S + 100)
def test_the_rendered_manifests_are_the_charts() -> None:
    made = run(*TEMPLATE, *OF_THE_PACKAGE)
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN"):
        RENDERED.write_text(made)
    assert RENDERED.read_text() == made, "AWSOMEFSD_UPDATE_GOLDEN=1 renders them anew"


def documents(text: str) -> list[dict]:
    """Without what a CRD defines."""
    made = [one for one in yaml.safe_load_all(text) if one]
    return [one for one in made if one["kind"] not in ("ServiceMonitor", "VolumeSnapshotClass")]


@pytest.mark.timeout(INSTALL_S + 100)
def test_kubernetes_knows_every_field_of_every_switch() -> None:
    chosen = (
        "driver.attachRequired=true", "driver.zoneLabel=topology.kubernetes.io/zone", "metrics.dashboard.enabled=true",
        "metrics.serviceMonitor.enabled=true", "sidecars.snapshotterEnabled=true",
    )  # fmt: skip
    for one in documents(run(*TEMPLATE, *OF_THE_PACKAGE, *[word for value in chosen for word in ("--set", value)])):
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)


# --- without helm ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(version: str) -> None:
    """Against the schemas that the package kubernetes-validate carries."""
    made = documents(RENDERED.read_text())
    for one in made:
        kubernetes_validate.validate(one, version, strict=True)
    [pods] = [one for one in made if one["kind"] == "DaemonSet"]
    pods["spec"]["template"]["spec"]["hostPIDs"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostPIDs"):
        kubernetes_validate.validate(pods, version, strict=True)


def test_the_manifests_apply_at_once() -> None:
    """In the order of the file, on a cluster that has none of its objects: the namespace comes before all that is in it."""
    made = [one for one in yaml.safe_load_all(RENDERED.read_text()) if one]
    names = [one["metadata"]["name"] for one in made if one["kind"] == "Namespace"]
    [first] = [number for number, one in enumerate(made) if one["kind"] == "Namespace"]
    assert names == ["awsomefs"] and made[first]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert {one["metadata"]["namespace"] for one in made if "namespace" in one["metadata"]} == {"awsomefs"}
    assert all("namespace" not in one["metadata"] for one in made[:first])


def test_the_image_is_the_one_that_is_built() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert (values["image"]["repository"], values["image"]["tag"]) == (image.NAME, "")
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
    assert f"{image.NAME}:{__version__}" in RENDERED.read_text()


def test_every_setting_of_the_pod_exists() -> None:
    named = set(re.findall(r"AWSOMEFSD_[A-Z_]+", (CHART / "templates" / "node.yaml").read_text()))
    known = {PREFIX + "_".join(path).upper() for path in key_paths()}
    assert len(named) > 10
    assert {name for name in named if name not in known and name.removesuffix("_FILE") not in known} == set()


def test_the_command_takes_the_arguments_of_the_pod() -> None:
    made = [one for one in yaml.safe_load_all(RENDERED.read_text()) if one and one["metadata"]["name"] == "awsomefs-node-keeper"]
    [pod] = [one["spec"]["template"]["spec"]["containers"][0] for one in made if one["kind"] == "Deployment"]
    group, command, *words = pod["args"]
    taken = cli.get_command(click.Context(cli), group).get_command(click.Context(cli), command)
    assert taken.make_context(command, words).params["remove_after"] == "24h"
    assert {one["name"] for one in pod["env"]} == {"AWSOMEFSD_RUN_DIR", "NODE_NAME"}


def test_the_daemon_takes_the_settings_of_the_pod(tmp_path: Path) -> None:
    [pod] = [one["spec"]["template"]["spec"] for one in yaml.safe_load_all(RENDERED.read_text()) if one and one["kind"] == "DaemonSet"]
    token = tmp_path / "token"
    token.write_text(TOKEN)
    given = {"status.hostIP": "10.0.0.1", "spec.nodeName": "node-1.example.net"}
    rows = pod["containers"][0]["env"]
    env = {one["name"]: one["value"] if "value" in one else given[one["valueFrom"]["fieldRef"]["fieldPath"]] for one in rows}
    for name, value in env.items():  # as kubelet does with the variables before
        env[name] = re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], value)
    settings = load(environ=env | {"AWSOMEFSD_TOKEN_FILE": str(token)})
    assert settings.kubernetes.host_keeper and settings.csi.enabled and settings.cluster.name == "node-1.example.net"
    assert settings.metrics.listen == "10.0.0.1:9460" and settings.token.get_secret_value() == TOKEN
    assert str(settings.kubernetes.join_token) == "/etc/awsomefs-join/token"
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for place in (settings.state_dir, settings.run_dir, settings.csi.kubelet_dir):
        assert str(place) in mounted, "the same path inside and outside"


def test_every_template_of_values_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(unknown_values(values, schema)) == []


def unknown_values(values: dict[str, Any], schema: dict[str, Any], above: str = "") -> Iterator[str]:
    """Keys of values that the schema of their place does not name; a place without named properties takes any."""
    properties = schema.get("properties")
    for key, value in values.items() if properties is not None else ():
        if key not in properties:
            yield above + key
        elif isinstance(value, dict):
            yield from unknown_values(value, properties[key], f"{above}{key}.")


def test_the_rendered_manifests_are_sound_yaml() -> None:
    made = [one for one in yaml.safe_load_all(RENDERED.read_text()) if one]
    assert {"DaemonSet", "Deployment", "CSIDriver", "StorageClass", "ServiceAccount", "ClusterRole"} <= {one["kind"] for one in made}
    assert all(one["metadata"]["name"] for one in made)
