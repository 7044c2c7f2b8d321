"""What an RPM spec file declares: its BuildRequires, as the guest's own rpmspec(8) evaluates them.

Which ones they are depends on macros and conditions that only a system of that kind knows.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from vmimagemanager.errors import ConfigError, GuestError
from vmimagemanager.guest.inventory import Clause, Run, framed
from vmimagemanager.guest.inventory.answer import read as read_answer
from vmimagemanager.names import printable
from vmimagemanager.trap.explain import Need

SUFFIX = ".spec"
_EVALUATION = r"""
evaluate() {{
    rpmspec --query --buildrequires "$folder/{mark}.spec" 2>"$folder/said"
}}
if have rpmspec && folder=$(mktemp -d); then
    cat >"$folder/{mark}.spec" <<'{mark}'
{text}
{mark}
    section spec evaluate
    section said cat "$folder/said"
    rm -rf "$folder"
fi
"""
_NAME = re.compile(r"[^\s()]+(?:\([^\s()]*(?:\([^\s()]*\))?[^\s()]*\))?(?:\([^\s()]*\))?")
_OPERATORS = frozenset({"<", "<=", "=", ">=", ">"})


def read(path: Path, run: Run) -> list[Need]:
    """Return what a spec needs to be built; ``run`` runs a script as root in the guest.

    Raises ConfigError when the spec cannot be read or evaluated, GuestError when the guest has no rpmspec.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"'{printable(path)}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{printable(path)}' is not UTF-8 text.") from error
    mark = secrets.token_hex(16)
    answer = read_answer(run(framed(mark, _EVALUATION.format(mark=mark, text=text))), mark)
    if "spec" not in answer:
        raise GuestError(
            f"'{printable(path)}' cannot be evaluated: the guest has no rpmspec.",
            hint="Install rpm-build there (Debian: rpm), or declare the names in a plain list.",
        )
    if answer.statuses["spec"]:
        raise ConfigError(
            f"'{printable(path)}' cannot be evaluated: rpmspec ended in the guest with status "
            f"{answer.statuses['spec']}.",
            detail=answer.text("said").strip(),
        )
    return [
        Need(managers=("rpm",), names=clause, source=str(path))
        for line in answer.lines("spec")
        for clause in clauses(line)
    ]


def clauses(requirement: str) -> Iterator[Clause]:
    """Yield what one requirement names, without versions; of a rich one (rpm.org, boolean dependencies) each part.

    Of ``(A if B)`` and ``(A unless B)`` it is A; what ``or`` joins are alternatives.
    """
    if not requirement.startswith("("):
        name = requirement.partition(" ")[0]
        if name and not name.startswith("rpmlib("):
            yield (name,)
        return
    inner = re.split(r"\s(?:if|unless|without)\s", requirement.strip()[1:].removesuffix(")"))[0]
    for part in re.split(r"\s(?:and|with)\s", inner):
        words = _NAME.findall(part)
        names = [
            word
            for before, word in zip(["", *words], words, strict=False)
            if word not in _OPERATORS and before not in _OPERATORS and word != "or"
        ]
        if names:
            yield tuple(names)
