"""Repeat and break what has to survive it, on a real guest: many restores, kills at any moment, rivals for one box.

After each fault ``fsck`` has to find nothing, ``gc`` to have nothing to do, and the box to be restored live and proven.
Ends with 1 when anything was otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmimagemanager import Box, BoxSettings, Manager, VmimError
from vmimagemanager.boxes.fork import clones_of
from vmimagemanager.hypervisor.connection import default_uri
from vmimagemanager.units import Size

IMAGE = "debian-12"
NAME = "vmimsoak"
RAM = Size(384 << 20)
LONGEST = 1.5  # seconds after which a verb is killed: longer than most take
GROWTH = 1.05  # what memory may grow by while nothing is leaked


class Soak:
    """One box, and what is done to it."""

    def __init__(self, manager: Manager, environment: dict[str, str], chance: random.Random) -> None:
        self.manager = manager
        self.environment = environment
        self.chance = chance
        self.wrong: list[str] = []
        self.facts: dict[str, object] = {}
        self.box = manager.define(NAME, BoxSettings(image=IMAGE, ram=RAM))
        self.box.up()
        self.box.snapshot("clean")

    # -- the rows ------------------------------------------------------------------------------------------------------

    def restores(self, count: int) -> None:
        """Restore many times in a row: no file, no memory and no domain may be left by it."""
        durations = []
        before = self.weights()
        for number in range(count):
            start = time.monotonic()
            self.require_proven(self.box, f"restore {number}")
            durations.append(time.monotonic() - start)
            if number == 9:  # by then everybody has what they need
                before = self.weights()
            self.tell("restores", number, count)
        after = self.weights()
        tenth = max(1, count // 10)
        self.facts["restores"] = {
            "count": count,
            "before": before,
            "after": after,
            "median of the first tenth": round(sorted(durations[:tenth])[tenth // 2], 3),
            "median of the last tenth": round(sorted(durations[-tenth:])[tenth // 2], 3),
        }
        for what, number in before.items():
            limit = number * GROWTH if what.endswith("KiB") else number
            if after[what] > limit:
                self.wrong.append(f"{count} restores: {what} grew from {number} to {after[what]}")

    def kills(self, count: int) -> None:
        """Kill verbs at random moments."""
        killed: Counter[str] = Counter()
        for number in range(count):
            words = self.chance.choice(
                [
                    ("restore", f"{NAME}@clean"),
                    ("snapshot", f"{NAME}@soaked"),
                    ("snapshot-remove", f"{NAME}@soaked"),
                    ("fork", f"{NAME}@clean", "--count", "2"),
                    ("kill", NAME),
                    ("up", NAME),
                ]
            )
            with self.started(*words) as child:
                time.sleep(self.chance.uniform(0.1, LONGEST))
                if child.poll() is None:
                    child.kill()
                    killed[words[0]] += 1
            self.require_nothing_left(f"kill {number} of {words[0]}")
            self.tell("kills", number, count)
        self.facts["kills"] = {"count": count, "killed": dict(killed)}

    def qemus(self, count: int) -> None:
        """Kill QEMU at random moments of a restore."""
        killed = 0
        for number in range(count):
            before = qemus(NAME)
            with self.started("restore", f"{NAME}@clean") as child:
                while child.poll() is None and not qemus(NAME) - before:
                    time.sleep(0.005)
                time.sleep(self.chance.uniform(0.0, 0.4))
                for pid in qemus(NAME) - before:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed += 1
            self.require_nothing_left(f"QEMU killed {number}")
            self.tell("QEMUs", number, count)
        self.facts["qemus"] = {"count": count, "killed": killed}

    def rivals(self, count: int) -> None:
        """Let one process restore a box that another one snapshots."""
        verbs = [("restore", f"{NAME}@clean"), ("snapshot", f"{NAME}@rival"), ("snapshot-remove", f"{NAME}@rival")]
        ended: Counter[str] = Counter()
        for number in range(count):
            with self.started(*verbs[0]) as first, self.started(*verbs[1 + number % 2]) as second:
                for words, child in ((verbs[0], first), (verbs[1 + number % 2], second)):
                    status = child.wait()
                    ended[f"{words[0]} {status}"] += 1
                    if status != 0:
                        self.wrong.append(f"rivals {number}: {words[0]} ended with {status}")
            self.require_nothing_left(f"rivals {number}")
            self.tell("rivals", number, count)
        self.facts["rivals"] = {"count": count, "ended": dict(ended)}

    # -- what has to hold ----------------------------------------------------------------------------------------------

    def require_nothing_left(self, after: str) -> None:
        examination = self.manager.fsck()
        self.wrong += [f"{after}: fsck found: {finding.where}: {finding.what}" for finding in examination.findings]
        self.wrong += [f"{after}: gc found: {leftover.what}" for leftover in self.manager.gc()]
        for clone in clones_of(self.manager.site, NAME):  # kept, by a fork that came to its end
            self.manager.box(clone).undefine(force=True)
        for snapshot in self.box.snapshots():
            self.require_proven(self.box, after, snapshot.name)
        self.require_proven(self.box, after)

    def require_proven(self, box: Box, after: str, snapshot: str = "clean") -> None:
        try:
            restored = box.restore(snapshot)
        except VmimError as error:
            self.wrong.append(f"{after}: '{snapshot}' was not restored: {error}")
            return
        if restored.engine != "live" or not restored.proven:
            self.wrong.append(f"{after}: '{snapshot}' was restored {restored.engine}: {'; '.join(restored.why_not)}")

    def weights(self) -> dict[str, int]:
        """Return how much there is of what could leak."""
        state = self.manager.state_directory
        return {
            "files": sum(len(names) for _, _, names in os.walk(state)),
            "disk KiB": sum(one.stat().st_blocks for one in state.rglob("*") if "log" not in one.name) // 2,
            "domains": len(self.manager.site.hypervisor.owned_by(str(state))),
            "our descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "our memory KiB": resident("self"),
            "libvirt's memory KiB": sum(resident(pid) for pid in processes("libvirtd")),
            "libvirt's descriptors": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes("libvirtd")),
            "QEMUs": len(qemus(NAME)),
        }

    # -- how -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        program = Path(sys.executable).with_name("vmimagemanager")
        environment = {**os.environ, **self.environment}
        with subprocess.Popen(
            [program, "-q", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child:
            yield child
            child.wait()

    def tell(self, what: str, number: int, count: int) -> None:
        if (number + 1) % 10 == 0 or number + 1 == count:
            print(f"{what}: {number + 1} of {count}, {len(self.wrong)} wrong", file=sys.stderr, flush=True)


def processes(name: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "comm").read_text().strip() == name and (folder / "exe").stat().st_uid == os.geteuid():
                found.append(folder.name)
    return found


def qemus(box: str) -> set[int]:
    """Return the processes that run a box's guest."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"\0guest={box},".encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def resident(pid: str) -> int:
    lines = Path("/proc", pid, "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


ROWS: dict[str, tuple[Callable[[Soak, int], None], int]] = {
    "restores": (Soak.restores, 200),
    "kills": (Soak.kills, 200),
    "qemus": (Soak.qemus, 50),
    "rivals": (Soak.rivals, 50),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=float, default=1.0, help="how many times the usual number of faults (1)")
    parser.add_argument("--seed", type=int, default=None, help="make the same random choices again")
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows (all)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    folder = Path(tempfile.mkdtemp(prefix="vmim-soak-", dir="/var/tmp"))
    folder.chmod(0o755)
    environment = {"VMIM_STATE_DIR": str(folder), "VMIM_URI": default_uri()}
    try:
        with Manager.open(uri=default_uri(), state_directory=folder) as manager:
            manager.images.build(IMAGE)
            try:
                soak = Soak(manager, environment, random.Random(seed))  # noqa: S311 - not for secrets
                for name in options.rows or ROWS:
                    row, count = ROWS[name]
                    row(soak, max(1, round(count * options.times)))
            finally:
                for name in reversed(manager.boxes()):
                    manager.box(name).undefine(force=True)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"format": 1, "kind": "soak", "seed": seed, "wrong": soak.wrong, **soak.facts}, indent=2))
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
