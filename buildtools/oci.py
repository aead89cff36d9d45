"""An OCI image as one file, written without a container engine: layers, configuration, manifest, what is attached to it, index.

The file is a tar of an OCI layout with the manifest.json of `docker save` beside it, so `ctr images import`, `podman load`, `docker load`,
`skopeo copy oci-archive:` and `kind load image-archive` all take it.  Everything in it is sorted and has one time, so the same content
gives the same bytes (gzip's depend on the zlib of the Python that packs; the digests of what is inside the layers do not).

What is attached (the list of contents) is an artifact with a `subject`, as registries of OCI 1.1 show it beside the image.

Own code because it is two pages; umoci and buildah unpack and pack again with the file times of the machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_OCI = "application/vnd.oci.image."
INDEX, MANIFEST, CONFIG, LAYER = f"{_OCI}index.v1+json", f"{_OCI}manifest.v1+json", f"{_OCI}config.v1+json", f"{_OCI}layer.v1.tar+gzip"
LEVEL = 6  # 9 takes three times as long for one hundredth less
EMPTY = "application/vnd.oci.empty.v1+json"
REF_NAME, CONTAINERD_NAME = "org.opencontainers.image.ref.name", "io.containerd.image.name"


@dataclass
class Tree:
    """What a layer holds: places (without the first slash) of files, links and directories; parents come by themselves."""

    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # content, mode
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)  # mode

    def add(self, place: str, content: bytes | str, mode: int = 0o644) -> None:
        self.files[place] = (content.encode() if isinstance(content, str) else content, mode)

    def copy(self, source: Path, place: str) -> None:
        self.add(place, source.read_bytes(), 0o755 if source.stat().st_mode & 0o100 else 0o644)

    def copy_all(self, source: Path, place: str) -> None:
        for path in sorted(source.rglob("*")):
            if path.is_symlink():
                self.links[f"{place}/{path.relative_to(source)}"] = str(path.readlink())
            elif path.is_file():
                self.copy(path, f"{place}/{path.relative_to(source)}")

    def tar(self, epoch: int) -> bytes:
        folders = {str(parent): 0o755 for place in [*self.files, *self.links, *self.folders] for parent in list(Path(place).parents)[:-1]}
        folders |= self.folders
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for place in sorted([*folders, *self.files, *self.links]):
                content, mode = self.files.get(place, (b"", folders.get(place, 0o777)))
                kind = tarfile.DIRTYPE if place in folders else tarfile.SYMTYPE if place in self.links else tarfile.REGTYPE
                about = {"mtime": epoch, "mode": mode, "type": kind, "linkname": self.links.get(place, ""), "size": len(content)}
                member = tarfile.TarInfo(place)
                for name, value in about.items():
                    setattr(member, name, value)
                tar.addfile(member, io.BytesIO(content))
        return out.getvalue()


@dataclass
class Archive:
    """One image with a name; `write` makes the file."""

    name: str  # registry.example/repository:tag, as the chart writes it
    architecture: str  # in Go's words: amd64
    epoch: int
    process: dict[str, Any]  # Entrypoint, Env, Labels and so on, of the configuration
    layers: list[tuple[str, Tree]]  # what it is, in words; the tree
    attached: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)  # media type, content, annotations
    _blobs: dict[str, bytes] = field(default_factory=dict)

    def _blob(self, media: str, content: bytes, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content), **more}

    def _json(self, media: str, document: dict[str, Any], **more: Any) -> dict[str, Any]:
        return self._blob(media, json.dumps(document, sort_keys=True, separators=(",", ":")).encode(), **more)

    def _image(self, created: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
        """Descriptors of the manifest, the configuration, the layers."""
        layers, diffs = [], []
        for _, tree in self.layers:
            raw = tree.tar(self.epoch)
            diffs.append(f"sha256:{hashlib.sha256(raw).hexdigest()}")
            layers.append(self._blob(LAYER, gzip.compress(raw, LEVEL, mtime=0)))
        history = [{"created": created, "created_by": words} for words, _ in self.layers]
        config = self._json(CONFIG, {
            "created": created, "architecture": self.architecture, "os": "linux", "config": self.process,
            "rootfs": {"type": "layers", "diff_ids": diffs}, "history": history,
        })  # fmt: skip
        labels = self.process.get("Labels", {})
        manifest = self._json(
            MANIFEST,
            {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, "annotations": labels},
            platform={"architecture": self.architecture, "os": "linux"},
        )
        return manifest, config, layers

    def _artifact(self, subject: dict[str, Any], media: str, content: bytes, annotations: dict[str, str]) -> dict[str, Any]:
        blob, nothing = self._blob(media, content), self._blob(EMPTY, b"{}")
        subject = {key: subject[key] for key in ("mediaType", "digest", "size")}
        document = {
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": media, "config": nothing, "layers": [blob], "subject": subject,
            "annotations": annotations,
        }  # fmt: skip
        return self._json(MANIFEST, document, artifactType=media, annotations=annotations)

    def write(self, target: Path) -> str:
        """Makes the file; returns the digest of the image's manifest."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.epoch))
        manifest, config, layers = self._image(created)
        full = self.name if "." in self.name.partition("/")[0] else f"docker.io/{self.name}"  # as containerd writes it
        named = manifest | {"annotations": {REF_NAME: self.name.rpartition(":")[2], CONTAINERD_NAME: full}}
        others = [self._artifact(manifest, *row) for row in self.attached]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named, *others]}
        tree = Tree()
        tree.add("oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}))
        tree.add("index.json", json.dumps(index, sort_keys=True))
        paths = {row["digest"]: "blobs/" + row["digest"].replace(":", "/") for row in (config, *layers)}
        saved = {"Config": paths[config["digest"]], "RepoTags": [self.name], "Layers": [paths[layer["digest"]] for layer in layers]}
        tree.add("manifest.json", json.dumps([saved]))
        for digest, content in self._blobs.items():
            tree.add(f"blobs/sha256/{digest}", content)
        target.write_bytes(tree.tar(self.epoch))
        return str(manifest["digest"])
