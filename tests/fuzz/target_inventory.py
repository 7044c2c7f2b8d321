"""What a guest answers when it is asked what is in it: sections of each package manager, of files and of the system."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vmimagemanager.guest import inventory
from vmimagemanager.guest.inventory import Inventory
from vmimagemanager.report import inventory as report
from vmimagemanager.report import sbom
from vmimagemanager.trap import Baseline, compare

NAME = "inventory"
MARK = "0123456789abcdef"


def read(content: bytes, folder: Path) -> None:
    found = inventory.parse(content, MARK)
    assert found.packages
    assert found == inventory.parse(content, MARK)
    assert not (found - found).packages
    assert not (found - found).facts
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e]", "".join(report.lines(found)))
    json.dumps([report.document(found), sbom.cyclonedx(found, name="box"), sbom.spdx(found, name="box")])
    nothing = compare(found, found, Baseline())
    assert not nothing.trapped
    # Whatever comes in can be accepted, in a file that can be read again, and is silent then.
    empty = Inventory(frozenset(), unknown=found.unknown)
    accepted = Baseline.of(compare(empty, found, Baseline()))
    again = Baseline.parse(accepted.text().encode(), source=folder / "deps.toml")
    assert again == accepted
    assert not compare(empty, found, again).trapped
