"""Releases for the tools of others: ONNX Runtime's model package, and an OCI image layout.

Both hold the files as they are, by the digests of the release.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeinfer.artifact.artifact import Artifact
from edgeinfer.atomic import draft_folder
from edgeinfer.backends.onnxruntime_.model_package import BACKEND, PackageVariant, package_manifest
from edgeinfer.fleet.device.blobs import blob_path
from edgeinfer.fleet.device.documents import canonical_json, sha256
from edgeinfer.fleet.device.release import Blob, Release
from edgeinfer.fleet.errors import RepositoryError
from edgeinfer.fleet.operator.storage import Storage

__all__ = ["ARTIFACT_TYPE", "export_model_package", "export_oci"]

ARTIFACT_TYPE = "application/vnd.edgeinfer.release.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_LAYER_TYPE = "application/vnd.edgeinfer.file.v1"
# The title is the file's path where `oras pull` puts it (image-spec, annotations).
_TITLE = "org.opencontainers.image.title"


def export_model_package(
    storage: Storage, release: Release, folder: str | os.PathLike[str]
) -> tuple[str, ...]:
    """Write the variants for ONNX Runtime as a model package, which `onnxruntime.ModelPackageContext` reads.

    Args:
        storage: The repository.
        release: The release.
        folder: The folder to make.

    Returns:
        The names of the variants; those for other runtimes are left out.

    Raises:
        RepositoryError: There is something at the folder, the release has no such variant, or the repository
            lacks a file.
    """
    variants = [v for v in release.variants if v.needs.backend == BACKEND]
    if not variants:
        raise RepositoryError(
            "The release has no variant for ONNX Runtime.",
            where=f"{release.model} {release.version}",
            found=", ".join(f"{v.name} ({v.needs.backend})" for v in release.variants),
        )
    with _new_folder(folder) as draft:
        packages = {}
        for variant in variants:
            inner = f"{release.model}/{variant.name}"
            for blob in variant.blobs:
                _copy(storage, blob, draft / inner / blob.path)
            manifest = Artifact.open(draft / inner).manifest
            packages[variant.name] = PackageVariant(folder=inner, manifest=manifest)
        (draft / "manifest.json").write_bytes(package_manifest(release.model, release.version, packages))
    return tuple(packages)


def export_oci(storage: Storage, release: Release, folder: str | os.PathLike[str]) -> str:
    """Write a release as an OCI image layout (image-spec 1.1): an index with one manifest a variant.

    `oras cp --from-oci-layout FOLDER:VERSION REGISTRY/NAME:VERSION` pushes it.

    Args:
        storage: The repository.
        release: The release.
        folder: The folder to make.

    Returns:
        The digest of the index.

    Raises:
        RepositoryError: There is something at the folder, or the repository lacks a file.
    """
    with _new_folder(folder) as draft:
        config = _add(draft, release.to_bytes(), ARTIFACT_TYPE)
        manifests = []
        for variant in release.variants:
            layers = [
                _layer(storage, draft, blob, f"{prefix}/{blob.path}")
                for prefix, blobs in (("artifact", variant.blobs), ("bundle", release.bundle_for(variant)))
                for blob in blobs
            ]
            manifest = {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": config,
                "layers": layers,
                "annotations": {_TITLE: variant.name},
            }
            manifests.append(
                _add(draft, canonical_json(manifest), _MANIFEST_TYPE)
                | {"annotations": {_TITLE: variant.name}}
            )
        index = _add(
            draft,
            canonical_json({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": manifests}),
            _INDEX_TYPE,
        )
        named = index | {"annotations": {"org.opencontainers.image.ref.name": release.version}}
        (draft / "index.json").write_bytes(
            canonical_json({"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [named]})
        )
        (draft / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
    return str(index["digest"])


def _add(draft: Path, data: bytes, media_type: str) -> dict[str, Any]:
    place = draft / "blobs" / "sha256" / sha256(data)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}


def _layer(storage: Storage, draft: Path, blob: Blob, title: str) -> dict[str, Any]:
    _copy(storage, blob, draft / "blobs" / "sha256" / blob.digest)
    return {
        "mediaType": _LAYER_TYPE,
        "digest": f"sha256:{blob.digest}",
        "size": blob.size,
        "annotations": {_TITLE: title},
    }


def _copy(storage: Storage, blob: Blob, place: Path) -> None:
    try:
        data = storage.read(f"blobs/{blob_path(blob.digest)}")
    except FileNotFoundError as error:
        raise RepositoryError("The repository lacks a file.", where=blob.digest) from error
    if sha256(data) != blob.digest:
        raise RepositoryError("A file of the repository is damaged.", where=blob.digest, found=sha256(data))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)


@contextlib.contextmanager
def _new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a draft that becomes the folder when all of it is written."""
    place = Path(folder)
    if place.exists():
        raise RepositoryError("There is something at that path.", where=str(folder), expected="nothing")
    with draft_folder(place.parent, place.name) as draft:
        yield draft
        draft.chmod(0o755)
        draft.rename(place)
