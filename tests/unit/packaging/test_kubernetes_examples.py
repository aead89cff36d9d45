"""The manifests of docs/examples/kubernetes: Kubernetes' schemas know every field, the chart and the driver know every name and value.

`tests/csi/test_examples.py` plays them against a driver.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from awsomefsd.base.limits import CSI_INLINE_BYTES
from awsomefsd.csi import rules
from awsomefsd.csi.settings import DRIVER

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "examples" / "kubernetes"
PAGE = ROOT / "docs" / "KUBERNETES-EXAMPLES.md"
CHART = ROOT / "packaging" / "helm" / "awsomefs"
RENDERED = ROOT / "packaging" / "k8s" / "awsomefs.yaml"
OLDEST, LATEST = "1.30", "1.36"
NEWER = {"VolumeAttributesClass"}  # not in the oldest
MODES = {"ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


MANIFESTS = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("values-"))
EVERY = [one for path in MANIFESTS for one in documents(path)]


def of(kind: str) -> list[dict[str, Any]]:
    return [one for one in EVERY if one["kind"] == kind]


def classes() -> dict[str, dict[str, Any]]:
    """Those of the examples and of the chart."""
    made = [one for one in documents(RENDERED) if one["kind"] == "StorageClass"]
    return {one["metadata"]["name"]: one for one in [*made, *of("StorageClass")]}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_knows_every_field(path: Path) -> None:
    for one in documents(path):
        kubernetes_validate.validate(one, LATEST, strict=True)
        if one["kind"] not in NEWER:
            kubernetes_validate.validate(one, OLDEST, strict=True)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("values-*.yaml")), ids=lambda path: path.stem)
def test_the_chart_takes_the_values(path: Path) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults, given = yaml.safe_load((CHART / "values.yaml").read_text()), yaml.safe_load(path.read_text())
    jsonschema.validate({**defaults, **given}, schema)
    with pytest.raises(jsonschema.ValidationError, match="metrix"):
        jsonschema.validate({**defaults, "metrix": {}}, schema)


def test_the_driver_is_ours_and_takes_the_parameters() -> None:
    assert len(classes()) >= 3
    for made in classes().values():
        assert made["provisioner"] == DRIVER
        given = {rules.KUBERNETES + "pvc/name": "claim", rules.KUBERNETES + "pvc/namespace": "default"}
        rules.read_parameters({**made.get("parameters", {}), **given}, {}, block=False, name="pvc-1")
        rules.split_flags(made.get("mountOptions", []))
    assert of("VolumeAttributesClass")
    for made in of("VolumeAttributesClass"):
        assert made["driverName"] == DRIVER
        rules.check_mutable(made["parameters"])


def test_static_volumes_have_a_handle_of_the_driver() -> None:
    assert of("PersistentVolume")
    for one in of("PersistentVolume"):
        source = one["spec"]["csi"]
        assert source["driver"] == DRIVER
        name, _, path = source["volumeHandle"].partition("#")[0].partition("/")
        assert name and rules.check_path(path or "x")
        rules.split_flags(one["spec"].get("mountOptions", []))


def test_claims_name_classes_and_volumes_that_exist() -> None:
    volumes = {one["metadata"]["name"]: one for one in of("PersistentVolume")}
    assert len(of("PersistentVolumeClaim")) >= 5
    for claim in of("PersistentVolumeClaim"):
        spec = claim["spec"]
        assert set(spec["accessModes"]) <= MODES
        if spec["storageClassName"]:
            assert spec["storageClassName"] in classes()
        else:
            assert volumes[spec["volumeName"]]["spec"]["accessModes"] == spec["accessModes"]


def test_pods_use_claims_of_the_same_file() -> None:
    seen = 0
    for path in MANIFESTS:
        made = documents(path)
        claims = {one["metadata"]["name"]: one["spec"] for one in made if one["kind"] == "PersistentVolumeClaim"}
        for one in made:
            pod = one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"] if one["kind"] == "Deployment" else None
            for volume in [volume for volume in pod["volumes"] if "csi" not in volume] if pod else ():
                claim, [container] = claims[volume["persistentVolumeClaim"]["claimName"]], pod["containers"]
                used = container["volumeDevices" if claim.get("volumeMode") == "Block" else "volumeMounts"]
                assert [mount["name"] for mount in used] == [volume["name"]]
                seen += 1
    assert seen >= 3


def test_the_namespace_is_that_of_the_manifests() -> None:
    [namespace] = of("Namespace")
    named = {one["metadata"]["namespace"] for one in documents(RENDERED) if "namespace" in one["metadata"]}
    assert named == {namespace["metadata"]["name"]}
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "privileged"}


def test_a_claim_grows_by_the_same_name() -> None:
    [before] = [one for one in documents(FOLDER / "claim.yaml") if one["kind"] == "PersistentVolumeClaim"]
    [after] = documents(FOLDER / "expand.yaml")
    assert after["metadata"] == before["metadata"] and classes()[after["spec"]["storageClassName"]]["allowVolumeExpansion"]
    sizes = [one["spec"].pop("resources")["requests"]["storage"] for one in (before, after)]
    assert before["spec"] == after["spec"] and sizes == ["10Gi", "20Gi"]


def test_the_page_shows_every_file_and_no_other() -> None:
    shown = set(re.findall(r"examples/kubernetes/([a-z-]+\.yaml)", PAGE.read_text()))
    assert shown == {path.name for path in FOLDER.iterdir()}


def test_inline_volumes_have_attributes_of_the_driver() -> None:
    found = [volume["csi"] for pod in of("Pod") for volume in pod["spec"]["volumes"] if "csi" in volume]
    assert found
    for one in found:
        assert one["driver"] == DRIVER and rules.read_inline(one["volumeAttributes"], CSI_INLINE_BYTES)[1]
