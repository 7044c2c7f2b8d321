"""Bills of materials: CycloneDX 1.6 and SPDX 2.3, in JSON.

https://cyclonedx.org/docs/1.6/json/ and https://spdx.github.io/spdx-spec/v2.3/.  One inventory always gives the same
document: its identifier is made of its content, and its date is the one that the guest's clock showed.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from vmimagemanager.guest.inventory import Inventory, Package, System
from vmimagemanager.report.inventory import ordered
from vmimagemanager.trap.graph import Graph

_TYPES = {"dpkg": "deb", "rpm": "rpm", "apk": "apk", "pacman": "alpm", "python": "pypi", "npm": "npm", "gem": "gem"}
_OF_SYSTEM = ("dpkg", "rpm", "apk", "pacman")
HOME = "https://github.com/hepix-virtualisation/vmimagemanager"


def cyclonedx(inventory: Inventory, *, name: str, packages: Sequence[Package] | None = None) -> dict[str, Any]:
    """Return a CycloneDX 1.6 document of ``packages`` (otherwise all of the inventory's) and what they depend on."""
    listed = ordered(inventory) if packages is None else list(packages)
    references = _references(listed)
    components = [
        {
            "type": "library",
            "bom-ref": references[package],
            "name": package.name,
            "version": package.version,
            "purl": purl(package, inventory.system),
            "properties": [{"name": "vmimagemanager:item", "value": package.item}],
        }
        for package in listed
    ]
    root = {"type": "operating-system", "bom-ref": "guest", "name": inventory.system.name or name}
    if inventory.system.version:
        root["version"] = inventory.system.version
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": _date(inventory),
            "tools": {"components": [{"type": "application", "name": "vmimagemanager", "version": _version()}]},
            "component": root,
        },
        "components": components,
        "dependencies": [
            {"ref": "guest", "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": references[one], "dependsOn": needed} for one, needed in _needs(listed, references).items()),
        ],
    }
    return {"serialNumber": f"urn:uuid:{_uuid(document)}", **document}


def spdx(inventory: Inventory, *, name: str, packages: Sequence[Package] | None = None) -> dict[str, Any]:
    """Return an SPDX 2.3 document of ``packages`` (all of the inventory's, unless given) and what they depend on."""
    listed = ordered(inventory) if packages is None else list(packages)
    references = {package: f"SPDXRef-{_spdx_id(one)}" for package, one in _references(listed).items()}
    guest = {
        "SPDXID": "SPDXRef-guest",
        "name": inventory.system.name or name,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        **({"versionInfo": inventory.system.version} if inventory.system.version else {}),
    }
    relations = [_relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-guest")]
    relations += [_relation("SPDXRef-guest", "CONTAINS", references[package]) for package in listed]
    for package, needed in _needs(listed, references).items():
        relations += [_relation(references[package], "DEPENDS_ON", one) for one in needed]
    document: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "creationInfo": {"created": _date(inventory), "creators": [f"Tool: vmimagemanager-{_version()}"]},
        "packages": [guest, *(_spdx_package(package, references[package], inventory.system) for package in listed)],
        "relationships": relations,
    }
    return {**document, "documentNamespace": f"{HOME}/spdx/{_uuid(document)}"}


def purl(package: Package, system: System) -> str:
    """Return the package's URL (https://github.com/package-url/purl-spec)."""
    from packageurl import PackageURL

    kind = _TYPES.get(package.manager, package.manager)
    name, namespace = package.name, None
    if package.manager in _OF_SYSTEM:
        namespace = system.id or "linux"
    elif package.manager == "npm" and name.startswith("@") and "/" in name:
        namespace, _, name = name.partition("/")
    qualifiers = {"arch": package.architecture} if package.architecture else {}
    if package.manager in _OF_SYSTEM and system.id and system.version:
        qualifiers["distro"] = f"{system.id}-{system.version}"
    version = package.version
    if package.manager == "rpm" and ":" in version:
        qualifiers["epoch"], _, version = version.partition(":")
    found = PackageURL(kind, namespace, name, version or None, qualifiers)
    return str(found.to_string())


def _references(packages: Iterable[Package]) -> dict[Package, str]:
    """Return a name for each package that no other has."""
    taken: dict[str, int] = {}
    found = {}
    for package in packages:
        wanted = f"{package.item}@{package.version}"
        taken[wanted] = taken.get(wanted, 0) + 1
        found[package] = wanted if taken[wanted] == 1 else f"{wanted}#{taken[wanted]}"
    return found


def _needs(packages: Sequence[Package], references: dict[Package, str]) -> dict[Package, list[str]]:
    graph = Graph(packages)
    return {
        package: sorted({references[needed] for _, needed in graph.needs(package) if needed is not package})
        for package in packages
    }


def _spdx_package(package: Package, reference: str, system: System) -> dict[str, Any]:
    return {
        "SPDXID": reference,
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "comment": package.item,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl(package, system),
            }
        ],
    }


def _spdx_id(text: str) -> str:
    """Return letters, digits, '.' and '-' that no other text gives."""
    return f"{re.sub(r'[^A-Za-z0-9.-]', '-', text)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _relation(one: str, kind: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}


def _date(inventory: Inventory) -> str:
    return datetime.fromtimestamp(inventory.clock, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _uuid(document: dict[str, Any]) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))


def _version() -> str:
    return metadata.version("vmimagemanager")
