"""A job that somebody wrote."""

from __future__ import annotations

from pathlib import Path

from vmimagemanager.nightly import Job

NAME = "job"


def read(content: bytes, folder: Path) -> None:
    job = Job.parse(content, source=folder / "hello.toml")
    assert job.box
    assert job.steps
    assert len({step.name for step in job.steps}) == len(job.steps)
    for step in job.steps:
        assert step.trap is None or (step.trap.baseline is None) is step.trap.expect_clean
