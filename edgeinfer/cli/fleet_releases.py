"""`edgeinfer fleet publish|verify|export-usb|export`: releases, and what becomes of them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgeinfer.cli.console import Commands, add_json, print_json, print_line, print_report
from edgeinfer.cli.fleet_keys import add_fleet, fleet_of, say_missing
from edgeinfer.cli.inputs import add_feeds, feeds_of, number
from edgeinfer.errors import EdgeInferError, OptionsError

if TYPE_CHECKING:
    from edgeinfer.budget import Budget
    from edgeinfer.feeds.preprocessing import Preprocessing
    from edgeinfer.fleet.device.release import Release
    from edgeinfer.fleet.operator.repository import Repository

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands."""
    parser = commands.add_parser("publish", help="publish one version of a model")
    add_fleet(parser)
    parser.add_argument("model", metavar="MODEL", help="the model's name in the fleet")
    parser.add_argument("artifacts", nargs="+", metavar="ARTIFACT",
                        help="directories that `edgeinfer compile` made: the variants")  # fmt: skip
    parser.add_argument("--version", metavar="NAME", help="the version's name (default: the next number)")
    parser.add_argument("--interface", metavar="NAME",
                        help="what applications rely on, such as defects/2 (default: as before)")  # fmt: skip
    parser.add_argument("--limit", action="append", default=[], type=_limit, metavar="NAME=VALUE",
                        help="a limit of the budget, such as latency_p99_ms=20")  # fmt: skip
    parser.add_argument("--labels", metavar="FILE", help="the names of the classes, one a line")
    parser.add_argument("--thresholds", metavar="FILE", help="a JSON object of numbers")
    parser.add_argument("--requires", metavar="VERSION",
                        help="the version that a device must have committed before")  # fmt: skip
    parser.add_argument(
        "--rtol", type=number(), default=0.05, help="tolerance of golden outputs (default: 0.05)"
    )
    parser.add_argument("--atol", type=number(), default=0.05, help="the same, absolute (default: 0.05)")
    add_feeds(parser, "--golden", "inputs on which devices must give the same outputs")
    add_json(parser)
    parser.set_defaults(run=publish)

    parser = commands.add_parser("verify", help="check a repository as a device does, to its last byte")
    parser.add_argument("source", metavar="SOURCE", help="a fleet's folder, a stick, or a URL")
    parser.add_argument("--root", metavar="FILE", help="the root of trust (default: SOURCE/keys/root.json)")
    parser.add_argument("--partial", action="store_true", help="releases may be missing, as on a stick")
    add_json(parser)
    parser.set_defaults(run=verify)

    parser = commands.add_parser("export-usb", help="write what devices without a network need to update")
    add_fleet(parser)
    parser.add_argument("folder", metavar="FOLDER", help="the stick, or a folder")
    parser.add_argument(
        "--days", type=number(above=0), default=30.0, help="how long it is good for (default: 30)"
    )
    parser.add_argument("--release", action="append", default=[], type=_release, metavar="MODEL@VERSION",
                        help="only these (default: the newest, and what is assigned)")  # fmt: skip
    parser.set_defaults(run=export_usb)

    parser = commands.add_parser("export", help="write a release for the tools of others")
    add_fleet(parser)
    parser.add_argument("release", type=_release, metavar="MODEL@VERSION")
    parser.add_argument("folder", metavar="FOLDER", help="the folder to make")
    parser.add_argument("--format", choices=("oci", "model-package"), default="oci",
                        help="an OCI image layout, or a package for ONNX Runtime (default: oci)")  # fmt: skip
    parser.set_defaults(run=export)


def publish(arguments: argparse.Namespace) -> None:
    """Publish one version of a model."""
    from edgeinfer.artifact.artifact import Artifact
    from edgeinfer.fleet.operator.publishing import publish as publish_release
    from edgeinfer.fleet.operator.variants import Tolerance

    artifacts = [Artifact.open(path) for path in arguments.artifacts]
    published = publish_release(
        fleet_of(arguments),
        arguments.model,
        artifacts,
        golden=feeds_of(arguments, artifacts[0].signature),
        interface=arguments.interface,
        budget=_budget(arguments),
        version=arguments.version,
        preprocessing=_preprocessing(arguments),
        labels=arguments.labels,
        thresholds=_numbers(arguments.thresholds),
        requires=arguments.requires,
        tolerance=Tolerance(rtol=arguments.rtol, atol=arguments.atol),
    )
    release = published.release
    if arguments.json:
        print_json({
            "model": release.model, "version": release.version, "digest": release.digest,
            "interface": release.interface, "variants": [v.name for v in release.variants],
            "missing": published.missing, "notes": published.notes,
        })  # fmt: skip
        return
    for note in published.notes:
        print_line(f"note: {note}")
    say_missing(published.missing, f"published {release.model} {release.version}, digest {release.digest}")
    for variant in release.variants:
        print_line(f"  {variant.name}: {variant.size / 1e6:.2f} MB in {len(variant.blobs)} files")
    saved = sum(delta.size for delta in release.deltas)
    if release.deltas:
        print_line(f"  {len(release.deltas)} deltas from earlier versions, {saved / 1e6:.2f} MB")


def verify(arguments: argparse.Namespace) -> None:
    """Check a repository."""
    from edgeinfer.fleet.operator.verify import verify as verify_repository

    root = Path(arguments.root) if arguments.root else Path(arguments.source) / "keys" / "root.json"
    if not root.is_file():
        raise OptionsError(
            "There is no root of trust.", where=str(root), hint="Give the file: --root root.json"
        )
    found = verify_repository(arguments.source, root.read_bytes(), partial=arguments.partial)
    print_report(found, arguments)
    if found.problems:
        raise EdgeInferError("The repository is damaged.", found="; ".join(found.problems))


def export_usb(arguments: argparse.Namespace) -> None:
    """Write a stick."""
    from edgeinfer.fleet.operator.usb import export_usb as write

    bundle = write(
        fleet_of(arguments), arguments.folder, days=arguments.days, releases=arguments.release or None
    )
    names = ", ".join(f"{release.model} {release.version}" for release in bundle.releases)
    print_line(f"written to {bundle.folder}: {names or 'no release'}; {bundle.size / 1e6:.2f} MB")
    print_line(f"assignments of {len(bundle.devices)} devices; good for {arguments.days:g} days")


def export(arguments: argparse.Namespace) -> None:
    """Write a release for the tools of others."""
    from edgeinfer.fleet.operator.exports import export_model_package, export_oci

    repository = fleet_of(arguments)
    release = _published(repository, *arguments.release)
    if arguments.format == "oci":
        print_line(f"index sha256 {export_oci(repository.storage, release, arguments.folder)}")
    else:
        names = export_model_package(repository.storage, release, arguments.folder)
        print_line(f"variants {', '.join(names)}")
    print_line(f"written to {arguments.folder}")


def _published(repository: Repository, model: str, version: str) -> Release:
    from edgeinfer.fleet.errors import UnknownReleaseError
    from edgeinfer.fleet.operator.publishing import published_releases

    found = published_releases(repository, repository.state(), model)
    for release in found:
        if release.version == version:
            return release
    raise UnknownReleaseError(
        "The repository has no such release.",
        expected=", ".join(f"{model}@{release.version}" for release in found) or "another model",
        found=f"{model}@{version}",
    )


def _budget(arguments: argparse.Namespace) -> Budget:
    from edgeinfer.budget import Budget

    return Budget.from_dict(dict(arguments.limit))


def _preprocessing(arguments: argparse.Namespace) -> Preprocessing | None:
    if not arguments.preprocessing:
        return None
    from edgeinfer.feeds.preprocessing import Preprocessing

    return Preprocessing.from_dict(json.loads(Path(arguments.preprocessing).read_text(encoding="utf-8")))


def _numbers(path: str | None) -> dict[str, float] | None:
    if path is None:
        return None
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(type(value) in (int, float) for value in found.values()):
        raise OptionsError("That is no file of thresholds.", where=path, expected="a JSON object of numbers")
    return found


def _limit(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if name.endswith("_bytes"):
        return name, value
    try:
        return name, float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no number") from error


def _release(text: str) -> tuple[str, str]:
    model, at, version = text.partition("@")
    if not at or not model or not version:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL@VERSION")
    return model, version
