"""etcd, API server, controller-manager and scheduler in the hub of the rig's network, with certificates, RBAC, Node authoriser and
NodeRestriction.

etcd does not sync: the disk is shared with what is tried, and nothing of a run outlives it.  Nothing elects a leader: there is one of
each.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from buildtools.kubernetes.rig import HUB, NODES, SERVICE, Rig, await_true
from buildtools.say import BuildError, good, run, step

SERVER = f"https://{HUB}:443"
PODS = "10.78"  # of node N: 10.78.N.0/24
READY_S = 240
DAYS = "30"


class ControlPlane:
    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.pki = rig.place / "pki"

    # --- certificates ---------------------------------------------------------------------------------------------------------
    def _openssl(self, *words: str) -> None:
        run(["openssl", *words], what=f"openssl {words[0]}", cwd=self.pki)

    def _authority(self) -> None:
        self.pki.mkdir(parents=True)
        self.pki.chmod(0o700)
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca.key")
        self._openssl("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=kubernetes", "-days", DAYS, "-out", "ca.crt")
        self._openssl("genrsa", "-out", "sa.key", "2048")
        self._openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def issue(self, name: str, subject: str, names: str = "") -> None:
        """NAME.key and NAME.crt; `names` are alternative names, in openssl's words."""
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        self._openssl("req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
        more = self.pki / f"{name}.ext"
        more.write_text("extendedKeyUsage=clientAuth,serverAuth\n" + (f"subjectAltName={names}\n" if names else ""))
        words = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", DAYS, "-extfile", more.name]
        self._openssl("x509", "-req", "-in", f"{name}.csr", *words, "-out", f"{name}.crt")

    def write_kubeconfig(self, name: str) -> Path:
        path = self.pki / f"{name}.conf"
        user = {"client-certificate": str(self.pki / f"{name}.crt"), "client-key": str(self.pki / f"{name}.key")}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "trial",
            "clusters": [{"name": "trial", "cluster": {"server": SERVER, "certificate-authority": str(self.pki / "ca.crt")}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "trial", "context": {"cluster": "trial", "user": name}}],
        }  # fmt: skip
        path.write_text(json.dumps(document))
        return path

    def _identities(self) -> None:
        self._authority()
        self.issue(
            "apiserver", "/CN=kube-apiserver", f"IP:{SERVICE},IP:{HUB},IP:127.0.0.1,DNS:kubernetes.default.svc,DNS:kubernetes.default"
        )
        self.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
        for name, subject in (
            ("admin", "/O=system:masters/CN=admin"),
            ("controller-manager", "/CN=system:kube-controller-manager"),
            ("scheduler", "/CN=system:kube-scheduler"),
            *((node, f"/O=system:nodes/CN=system:node:{node}") for node in self._rig.all_names()),
        ):
            self.issue(name, subject)
            self.write_kubeconfig(name)

    # --- programs -------------------------------------------------------------------------------------------------------------
    def start(self) -> None:
        step("Control plane")
        self._network()
        self._identities()
        self._start_etcd()
        self._spawn("kube-apiserver", self._apiserver())
        await_true("the API server is ready", self.ready, READY_S)
        self._spawn("kube-controller-manager", self._controller_manager())
        self._spawn("kube-scheduler", self._scheduler())
        good(f"API server, controller-manager and scheduler at {SERVER}")

    def _network(self) -> None:
        self._rig.network.make()
        rows = ["ip link set lo up", f"ip addr add {SERVICE}/32 dev br0", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
        rows += [f"ip route add {PODS}.{number}.0/24 via {self._rig.network.address(number)}" for number in range(1, NODES + 2)]
        run(self._rig.in_hub("sh", "-ec", "\n".join(rows)), what="addresses of the control plane")

    def _spawn(self, name: str, words: list[str]) -> None:
        self._rig.spawn(name, self._rig.in_hub(self._rig.bin / name if name != "etcd" else "etcd", *words))

    def _start_etcd(self) -> None:
        words = [f"--data-dir={self._rig.place}/etcd", "--unsafe-no-fsync", "--listen-client-urls=http://127.0.0.1:2379"]
        words += [
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--logger=zap",
            "--log-level=warn",
        ]
        self._spawn("etcd", [*words, "--heartbeat-interval=500", "--election-timeout=5000", "--quota-backend-bytes=800000000"])

    def _apiserver(self) -> list[str]:
        pki = self.pki
        return [
            "--etcd-servers=http://127.0.0.1:2379", f"--advertise-address={HUB}", "--bind-address=0.0.0.0", "--secure-port=443",
            "--service-cluster-ip-range=10.96.0.0/24", "--allow-privileged=true", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction", f"--client-ca-file={pki}/ca.crt", f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key", f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key", "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key", f"--cert-dir={self._rig.place}/apiserver",
        ]  # fmt: skip

    def _controller_manager(self) -> list[str]:
        config = self.pki / "controller-manager.conf"
        return [
            f"--kubeconfig={config}", f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            f"--service-account-private-key-file={self.pki}/sa.key", f"--root-ca-file={self.pki}/ca.crt",
            "--use-service-account-credentials", f"--cert-dir={self._rig.place}/controller-manager",
        ]  # fmt: skip

    def _scheduler(self) -> list[str]:
        config = self.pki / "scheduler.conf"
        words = [f"--kubeconfig={config}", f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}"]
        return [*words, "--leader-elect=false", f"--cert-dir={self._rig.place}/scheduler"]

    def ready(self) -> bool:
        dead = [child for child in self._rig.children if child.poll() is not None]
        if dead:
            raise BuildError(f"{dead[0].args!r} ended with {dead[0].returncode}: see {self._rig.logs}")
        words = [str(self._rig.bin / "kubectl"), f"--kubeconfig={self._rig.kubeconfig}", "get", "--raw=/readyz"]
        done = subprocess.run(self._rig.in_hub(*words), capture_output=True, text=True, check=False)
        return done.returncode == 0 and done.stdout == "ok"
