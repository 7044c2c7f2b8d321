"""What another user may do with a path: mode bits, group membership and POSIX access control lists.

The lists are read as the kernel keeps them, in the extended attribute ``system.posix_acl_access``
(linux/posix_acl_xattr.h), and judged as acl(5) says.
"""

from __future__ import annotations

import os
import pwd
import struct
from dataclasses import dataclass
from pathlib import Path

READ, WRITE, SEARCH = 4, 2, 1
_ATTRIBUTE = "system.posix_acl_access"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

Entry = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Account:
    """A user as the kernel judges it: its id, all its groups, and its name for people."""

    user: int
    groups: frozenset[int]
    name: str

    @classmethod
    def of(cls, user: int, group: int) -> Account:
        """Return the account of a program that libvirt starts as ``user`` and ``group``.

        As virGetGroupList does, it has the user's groups of the user database, its own primary one included, too.
        """
        try:
            entry = pwd.getpwuid(user)
        except KeyError:
            return cls(user, frozenset({group}), str(user))
        return cls(user, frozenset({group, *os.getgrouplist(entry.pw_name, entry.pw_gid)}), entry.pw_name)


def may(account: Account, path: Path, wanted: int) -> bool:
    """Say whether an account has the permissions ``wanted`` on what is at ``path``; raise OSError when it is hidden."""
    if account.user == 0:
        return True
    status = path.stat()
    return granted(account, (status.st_uid, status.st_gid), _entries(path, status.st_mode), wanted)


def granted(account: Account, owner: tuple[int, int], entries: list[Entry], wanted: int) -> bool:
    """Judge a list of (tag, permissions, id): the first class that fits decides, and any fitting group may grant."""
    mask = next((permissions for tag, permissions, _ in entries if tag == _MASK), 0o7)
    if account.user == owner[0]:
        return any(tag == _USER_OBJ and permissions & wanted == wanted for tag, permissions, _ in entries)
    named = [permissions for tag, permissions, name in entries if tag == _USER and name == account.user]
    if named:
        return named[0] & mask & wanted == wanted
    of_groups = [
        permissions
        for tag, permissions, name in entries
        if (tag == _GROUP_OBJ and owner[1] in account.groups) or (tag == _GROUP and name in account.groups)
    ]
    if of_groups:
        return any(permissions & mask & wanted == wanted for permissions in of_groups)
    return any(tag == _OTHER and permissions & wanted == wanted for tag, permissions, _ in entries)


def folders_above(path: Path) -> list[Path]:
    """Return the existing folders that lead to ``path``, itself included, by its name and by where links lead."""
    found = [folder for end in (path.absolute(), path.resolve()) for folder in [*reversed(end.parents), end]]
    return [folder for folder in dict.fromkeys(found) if is_folder(folder)]


def is_folder(path: Path) -> bool:
    """Say whether we can see a folder at ``path`` (`Path.is_dir` raises where a folder above is closed)."""
    return os.path.isdir(path)  # noqa: PTH112


def _entries(path: Path, mode: int) -> list[Entry]:
    try:
        content = os.getxattr(path, _ATTRIBUTE)
    except OSError:  # it has none, or its file system knows none
        return [(_USER_OBJ, mode >> 6 & 7, 0), (_GROUP_OBJ, mode >> 3 & 7, 0), (_OTHER, mode & 7, 0)]
    return list(struct.iter_unpack("<HHI", content[4:]))
