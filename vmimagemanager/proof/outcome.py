"""How a run of a command ended: what is compared between two runs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The exit status (None: it did not end in time), the digest of each file of the artefacts by its name, seconds."""

    status: int | None
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    def otherwise(self, reference: Outcome, stable: frozenset[str]) -> str:
        """Say in a few words what is not as in a reference run, or nothing; only ``stable`` files are compared."""
        if self.status is None:
            return "the command does not end"
        if self.status != reference.status:
            return f"the command ends with status {self.status}"
        for name in sorted(stable):
            if name not in self.files:
                return f"'{name}' is missing"
            if self.files[name] != reference.files[name]:
                return f"'{name}' is another one"
        more = sorted(self.files.keys() - reference.files.keys())
        return f"'{more[0]}' is there, too" if more else ""
