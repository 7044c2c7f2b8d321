"""What is asked of a trap on the command line, and what of that does not go together."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vmimagemanager.box import Box
    from vmimagemanager.proof import Question
    from vmimagemanager.trap import History, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options that are the trap's own."""

    baseline: Path | None
    policy: Path | None
    declared: tuple[Path, ...]
    since: str | None
    trace: str | None
    prove: bool
    on: str | None
    artefact: tuple[PurePosixPath, ...]
    jobs: int | None
    expect_clean: bool
    accept: bool
    rebase: bool
    earlier: Path | None
    junit: Path | None
    sarif: Path | None
    markdown: Path | None
    cyclonedx: Path | None
    spdx: Path | None

    def __post_init__(self) -> None:
        if self.expect_clean and (self.baseline is not None or self.writes):
            raise click.UsageError("--expect-clean goes by no baseline, and writes none.")
        if not self.expect_clean and self.baseline is None:
            raise click.UsageError("Expected --baseline FILE, or --expect-clean.")
        if self.prove and self.trace is None:
            object.__setattr__(self, "trace", "atime")
        if self.trace and not self.declared:
            raise click.UsageError("What is used is compared with what is declared: expected --declared FILE.")
        if not self.prove and (self.on or self.artefact or self.jobs):
            raise click.UsageError("--on, --artefact and --jobs belong to a proof: expected --prove.")
        for path in self.artefact:
            if not path.is_absolute():
                raise click.UsageError(f"--artefact '{path}': expected an absolute path in the guest.")

    @property
    def writes(self) -> bool:
        return self.accept or self.rebase

    def accepting(self, box: str, words: tuple[str, ...]) -> str:
        """Return the command that accepts what was found, if there is one."""
        if self.baseline is None:
            return ""
        options: list[tuple[str, PurePath | str | None]] = [
            ("--baseline", self.baseline),
            ("--policy", self.policy),
            ("--since", self.since),
            ("--trace", self.trace),
            ("--on", self.on),
        ]
        options += [("--declared", path) for path in self.declared]
        options += [("--artefact", path) for path in self.artefact]
        given = ["--prove"] if self.prove else []
        given += [word for option, value in options if value for word in (option, str(value))]
        return shlex.join(["vmimagemanager", "trap", box, *given, "--accept", "--", *words])

    def question(self, box: Box, words: tuple[str, ...]) -> Question | None:
        """Return what is to be proven, if anything: on the snapshot that was named, or the one that the box stands on.

        Raises UsageError when there is none.
        """
        if not self.prove:
            return None
        from vmimagemanager.proof import Question

        return Question.of(box, words, snapshot=self.on, artefacts=self.artefact, jobs=self.jobs)

    def history(self) -> History | None:
        from vmimagemanager.trap import History

        return None if self.earlier is None else History.read(self.earlier)

    def files(self) -> Mapping[str, Path]:
        from vmimagemanager.report.trapfiles import FORMS

        return {form: path for form in FORMS if (path := getattr(self, form)) is not None}

    def write(self, verdict: Verdict, box: str) -> None:
        from vmimagemanager.durable import replace_file
        from vmimagemanager.report.trapfiles import made

        where = self.declared[0] if self.declared else self.baseline or self.policy or Path("trap")
        for form, path in self.files().items():
            replace_file(path, made(form, verdict, name=box, where=where))
