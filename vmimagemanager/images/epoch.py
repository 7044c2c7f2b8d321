"""The time that nothing in a built image is younger than: that of the newest Release file it is installed from.

A build from the same archive state gets the same one, whenever it runs (SOURCE_DATE_EPOCH of reproducible-builds.org).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import ToolError
from vmimagemanager.images.catalogue import DISTRIBUTIONS, Recipe

_log = logging.getLogger(__name__)
_HELPER = Path("/usr/lib/apt/apt-helper")  # it fetches as apt does: through the same proxies, with the same passwords
_LIMIT = timedelta(minutes=2)
_DATE = re.compile(r"^Date: (.+)$", re.MULTILINE)
_LINE = re.compile(r"deb(?:\s+\[[^\]]*\])?\s+(\S+)\s+(\S+)")


def of(recipe: Recipe, mirror: str | None, stage: Path) -> int:
    """Return seconds since 1970; ``stage`` is for what is fetched.  Raises ToolError when the archive is not there."""
    if recipe.epoch is not None:
        return round(recipe.epoch.timestamp())
    (uri, suite), *others = sources(recipe, mirror)
    dates = [_date_of(uri, suite, stage, needed=True)]
    dates += [_date_of(uri, suite, stage, needed=False) for uri, suite in others]
    return min(max(dates), round(time.time()))


def sources(recipe: Recipe, mirror: str | None) -> Sequence[tuple[str, str]]:
    """Return the addresses and suites that a recipe is installed from, the first of which has to be there."""
    if mirror is not None:
        line = _LINE.match(mirror)
        return [(line[1], line[2]) if line is not None else (mirror, recipe.suite)]
    distribution = DISTRIBUTIONS[recipe.distribution]
    # What mmdebstrap takes for a stable release; others do not have the last two.
    return [
        (distribution.mirror, recipe.suite),
        (distribution.mirror, f"{recipe.suite}-updates"),
        (distribution.security, f"{recipe.suite}-security"),
    ]


def _date_of(uri: str, suite: str, stage: Path, *, needed: bool) -> int:
    address, target = f"{uri.rstrip('/')}/dists/{suite}/InRelease", stage / "InRelease"
    target.unlink(missing_ok=True)
    finished = process.run([_HELPER, "-q", "download-file", address, target], limit=_LIMIT, check=False)
    said = finished.stderr.decode("utf-8", "replace") + finished.stdout.decode("utf-8", "replace")
    if finished.status != 0 or not target.exists():
        if not needed and "404" in said:
            _log.debug("there is no '%s'", address)
            return 0
        raise ToolError(
            f"The archive cannot be reached: '{address}' could not be fetched.",
            hint="Is the archive reachable?  Another mirror can be given with --mirror.",
            detail="\n".join(said.strip().splitlines()[-5:]),
            argv=finished.argv,
            status=finished.status,
        )
    with translate_os_errors("read", target):
        found = _DATE.search(target.read_text(errors="replace"))
    try:
        return round(parsedate_to_datetime(found[1]).timestamp()) if found is not None else 0
    except ValueError:
        return 0
