"""User namespaces: whether mmdebstrap may use them here, and what mends it when it may not."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from vmimagemanager import process
from vmimagemanager.errors import ToolError
from vmimagemanager.locks import user_name

_LIMIT = timedelta(minutes=5)
# Each setting, the value that forbids user namespaces, and the command that allows them.
_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def require() -> None:
    """Try whether mmdebstrap can enter its namespaces; raise ToolError with the command that mends it."""
    helper = _helper("true")
    finished = process.run(helper, limit=_LIMIT, check=False)
    if finished.status == 0:
        return
    reason, hint = _diagnosis() if os.geteuid() != 0 else ("the host does not allow a new mount namespace", "")
    raise ToolError(
        f"An image cannot be built here: {reason}.",
        hint=hint or "Inside a container, give it CAP_SYS_ADMIN, or build on another host.",
        detail=finished.stderr.decode("utf-8", "replace").strip(),
        argv=finished.argv,
        status=finished.status,
    )


def remove_contents(folder: Path) -> None:
    """Remove what is in ``folder`` and belongs to the caller's subordinate user ids, as far as it can be."""
    process.run(_helper("find", str(folder), "-xdev", "-mindepth", "1", "-delete"), limit=_LIMIT, check=False)


def _helper(*argv: str) -> list[str | Path]:
    # mmdebstrap's own entry, because Ubuntu's AppArmor lets it use namespaces and forbids them to unshare(1).
    return [process.require("mmdebstrap", package="mmdebstrap"), "--unshare-helper", *argv]


def _diagnosis() -> tuple[str, str]:
    if process.find("newuidmap") is None:
        return "the program 'newuidmap' is missing, which maps user ids", "apt-get install uidmap"
    user = user_name()
    for table, option in (("subuid", "--add-subuids"), ("subgid", "--add-subgids")):
        if not _has_line(Path("/etc") / table, user):
            return f"the user '{user}' has no line in /etc/{table}", f"As root: usermod {option} 100000-165535 {user}"
    for name, forbidding, command in _SWITCHES:
        setting = Path("/proc/sys") / name
        if setting.exists() and setting.read_text().strip() == forbidding:
            return f"user namespaces are switched off ({setting} is {forbidding})", f"As root: {command}"
    return "user namespaces cannot be used", ""


def _has_line(table: Path, user: str) -> bool:
    try:
        return any(line.split(":")[0] == user for line in table.read_text().splitlines())
    except OSError:
        return False
