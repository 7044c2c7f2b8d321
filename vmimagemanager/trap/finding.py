"""One thing that the trap has to say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from vmimagemanager.trap.explain import Explanation


class Severity(StrEnum):
    """How bad it is: only errors spring the trap."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    IGNORE = "ignore"


class Rule(StrEnum):
    """What was found."""

    NEW = "new"
    UNDECLARED = "undeclared"
    USED = "used"
    GONE = "gone"
    VERSION = "version"
    ORPHANED = "orphaned"
    SHADOWED = "shadowed"
    FILE = "file"
    PROGRAM = "program"
    SETUID = "setuid"
    CAPABILITY = "capability"
    MODIFIED = "modified"
    ALTERNATIVE = "alternative"
    UNIT = "unit"
    SOCKET = "socket"
    USER = "user"
    GROUP = "group"
    REPOSITORY = "repository"
    KEY = "key"
    MODULE = "module"
    EXPIRED = "expired"
    UNUSED = "unused"


# What is said about each in the outputs that list rules.
TITLES = {
    Rule.NEW: "A package is new, and the baseline does not accept it",
    Rule.UNDECLARED: "A package is new, and nothing that is declared leads to it",
    Rule.USED: "A package of the base is used, and nothing that is declared leads to it",
    Rule.GONE: "A package or a fact of the system is gone",
    Rule.VERSION: "A package has another version",
    Rule.ORPHANED: "A package that came by itself is not needed any more",
    Rule.SHADOWED: "A package of a language hides another one of the same name",
    Rule.FILE: "A file that no package owns is new",
    Rule.PROGRAM: "A file that no package owns is new, or another one, where programs and libraries are looked for",
    Rule.SETUID: "A program runs with the rights of another user or group",
    Rule.CAPABILITY: "A program has capabilities",
    Rule.MODIFIED: "A file of a package is not what the package brought",
    Rule.ALTERNATIVE: "An alternative leads elsewhere",
    Rule.UNIT: "A unit of systemd is new, or in another state",
    Rule.SOCKET: "A program listens",
    Rule.USER: "A user is new, or another one",
    Rule.GROUP: "A group is new, or has other members",
    Rule.REPOSITORY: "A repository of packages is new, or another one",
    Rule.KEY: "A trusted key is new, or another one",
    Rule.MODULE: "A module of the kernel was loaded",
    Rule.EXPIRED: "An exception of the policy has expired",
    Rule.UNUSED: "An exception of the policy matches nothing",
}

DEFAULTS = {
    Rule.NEW: Severity.ERROR,
    Rule.UNDECLARED: Severity.ERROR,
    Rule.USED: Severity.ERROR,
    Rule.GONE: Severity.INFO,
    Rule.VERSION: Severity.INFO,
    Rule.ORPHANED: Severity.WARNING,
    Rule.SHADOWED: Severity.ERROR,
    Rule.FILE: Severity.INFO,
    Rule.PROGRAM: Severity.ERROR,
    Rule.SETUID: Severity.ERROR,
    Rule.CAPABILITY: Severity.ERROR,
    Rule.MODIFIED: Severity.ERROR,
    Rule.ALTERNATIVE: Severity.WARNING,
    Rule.UNIT: Severity.WARNING,
    Rule.SOCKET: Severity.ERROR,
    Rule.USER: Severity.ERROR,
    Rule.GROUP: Severity.WARNING,
    Rule.REPOSITORY: Severity.ERROR,
    Rule.KEY: Severity.ERROR,
    Rule.MODULE: Severity.INFO,
    Rule.EXPIRED: Severity.WARNING,
    Rule.UNUSED: Severity.WARNING,
}


# What something that was removed again can have left behind; modules of the kernel stay as long as it runs.
LEFTOVERS = frozenset(Rule) - {Rule.UNDECLARED, Rule.USED, Rule.MODULE, Rule.EXPIRED, Rule.UNUSED}


class Label(StrEnum):
    """Against an earlier run: seen for the first time, or seen before."""

    NEW = "new"
    OUTSTANDING = "outstanding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as the baseline has it.

    ``detail`` is what may differ from run to run (versions, states).  ``excepted`` is the reason that the policy's
    exception gives.  ``label`` and ``since`` (a date) compare it with an earlier run, and ``cause`` says whether what
    we asked for has changed since then, or the archive.
    """

    rule: Rule
    item: str
    severity: Severity
    detail: str = ""
    explanation: Explanation | None = None
    accepted: bool = False
    excepted: str = ""
    label: Label | None = None
    since: str = ""
    cause: str = ""

    @property
    def counts(self) -> bool:
        """Whether it springs the trap."""
        return self.severity is Severity.ERROR and not self.accepted and not self.excepted

    @property
    def fingerprint(self) -> str:
        """What identifies it from run to run, whatever the version."""
        return hashlib.sha256(f"{self.rule}\0{self.item}".encode("utf-8", "surrogatepass")).hexdigest()[:20]
