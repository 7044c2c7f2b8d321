"""Measure restores against libvirt's own floor, as ratios of interleaved pairs within one run.

Each restore starts from a box that runs and is dirty, its teardown included.  What is divided by what, and why, is in
vmimagemanager-internals(7).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import bench_packages
import bench_trap
from bench_watch import elsewhere
from rich.console import Console
from rich.table import Table

from vmimagemanager import Box, BoxSettings, Manager
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Channel
from vmimagemanager.guest.agent import Agent
from vmimagemanager.hypervisor.connection import Hypervisor, default_uri
from vmimagemanager.hypervisor.domain import Domain
from vmimagemanager.hypervisor.domainxml import DomainXml
from vmimagemanager.units import Size

IMAGE = "debian-12"
SMALL, LARGE, HUGE = Size(512 << 20), Size(3 << 30), Size(5 << 30)
LIMIT = timedelta(minutes=2)
PAGE = 4096
FILES = 5000
FILLED = "/dev/shm/touched"  # noqa: S108 - in a guest
PREFIX = "vmimbench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: the median and the quartiles of its pairs' ratios (or of seconds, for the last two)."""

    name: str
    at_most: float
    median: float
    quartiles: tuple[float, float]
    pairs: int
    above: float
    below: float

    @property
    def met(self) -> bool:
        return self.median <= self.at_most


class Bench:
    """The boxes that are measured."""

    def __init__(self, manager: Manager, pairs: int) -> None:
        self.manager = manager
        self.pairs = pairs
        self.site: Site = manager.site
        self.hypervisor: Hypervisor = manager.site.hypervisor
        self.rows: list[Row] = []
        self.series: dict[str, list[tuple[int, list[float]]]] = {}

    # -- the rows ------------------------------------------------------------------------------------------------------

    def against_the_floor(self) -> None:
        box = self.snapshotted("small", SMALL, touched_mib=128)
        returns, runs, own, reads = [], [], [], []
        for _ in self.progress("restore and floor"):
            self.dirty(box)
            with elsewhere() as others:
                whole, phases = self.restore(box)
            own.append((whole - others.seconds, whole))
            reads.append((whole + self.timed(lambda: self.read(box, 64)), whole))
            command = self.timed(lambda: self.agent(box).run(["/bin/true"], limit=LIMIT))
            self.dirty(box)
            bare = self.bare_start(box)
            box.restore("clean")
            returns.append((whole, bare + command))
            runs.append((sum(phases[name] for name in ("end", "overlay", "start")), bare))
        self.add("live restore until it returns, proven and repaired / the floor", 1.3, returns)
        self.add("live restore until the guest runs / destroy and plain paused start", 0.7, runs)
        self.add("live restore until a command has read 64 MiB of its memory / until it returns", 1.4, reads)
        self.add("own share of a restore: time outside libvirt, QEMU and guest / the whole", 0.15, own)
        box.undefine(force=True)

    def huge_memory_does_not_matter(self) -> None:
        few = self.snapshotted("few", HUGE, touched_mib=256)
        many = self.snapshotted("many", HUGE, touched_mib=4096)
        warm, cold = [], []
        for _ in self.progress("16 times the memory"):
            for pairs, prepare in ((warm, lambda: None), (cold, drop_page_cache)):
                seconds = []
                for box in (many, few):
                    self.dirty(box)
                    prepare()
                    seconds.append(self.restore(box)[0])
                pairs.append((seconds[0], seconds[1]))
        self.add("live restore with 4 GiB touched / with 0.25 GiB, page cache warm", 1.1, warm)
        self.add("live restore with 4 GiB touched / with 0.25 GiB, page cache dropped", 1.5, cold)
        for box in (few, many):
            box.undefine(force=True)

    def time_against_memory(self) -> None:
        """Collect the points of the plot; a figure of its own it is not."""
        restores, reverts = [], []
        for touched in (256, 512, 1024, 2048, 4096):
            print(f"time against memory: {touched} MiB", file=sys.stderr)
            restores.append((touched, self.restores_of(touched)))
            reverts.append((touched, self.reverts_of(touched)))
        self.series = {"vmimagemanager restore": restores, "virsh snapshot-revert": reverts}

    def restores_of(self, touched_mib: int) -> list[float]:
        box = self.snapshotted("plot", HUGE, touched_mib=touched_mib)
        seconds = [self.until_a_command(box, lambda: box.restore("clean")) for _ in range(5)]
        box.undefine(force=True)
        return seconds

    def reverts_of(self, touched_mib: int) -> list[float]:
        twin = self.twin(HUGE, touched_mib=touched_mib)
        seconds = [self.until_a_command(twin, lambda: revert(self.hypervisor.uri, twin)) for _ in range(3)]
        virsh(self.hypervisor.uri, "snapshot-delete", twin.name, "clean", "--metadata")
        twin.undefine(force=True)
        return seconds

    def until_a_command(self, box: Box, deed: Callable[[], object]) -> float:
        self.dirty(box)
        return self.timed(lambda: (deed(), self.answers(box).run(["/bin/true"], limit=LIMIT)))

    def memory_does_not_matter(self) -> None:
        few = self.snapshotted("few", LARGE, touched_mib=256)
        many = self.snapshotted("many", LARGE, touched_mib=2048)
        pairs = []
        for _ in self.progress("8 times the memory"):
            self.dirty(many)
            above, _phases = self.restore(many)
            self.dirty(few)
            below, _phases = self.restore(few)
            pairs.append((above, below))
        self.add("live restore with 8 times the touched memory / with 1", 1.15, pairs)
        few.undefine(force=True)
        self.against_revert(many, LARGE, 2048, at_most=0.12)
        many.undefine(force=True)
        small = self.snapshotted("small", SMALL, touched_mib=128)
        self.against_revert(small, SMALL, 128, at_most=0.9)
        small.undefine(force=True)

    def against_revert(self, many: Box, ram: Size, touched_mib: int, *, at_most: float) -> None:
        twin = self.twin(ram, touched_mib=touched_mib)
        pairs = []
        for _ in self.progress("virsh snapshot-revert"):
            self.dirty(many)
            above, _phases = self.restore(many)
            many.kill()
            self.dirty(twin)
            below = self.timed(
                lambda: (revert(self.hypervisor.uri, twin), self.answers(twin).run(["/bin/true"], limit=LIMIT))
            )
            many.restore("clean")
            pairs.append((above, below))
        self.add(f"live restore / virsh snapshot-revert of a twin of {ram.human()}", at_most, pairs)
        virsh(self.hypervisor.uri, "snapshot-delete", twin.name, "clean", "--metadata")
        twin.undefine(force=True)

    def against_a_boot(self) -> None:
        box = self.snapshotted("boot", SMALL, touched_mib=0)
        cold = self.manager.define(f"{PREFIX}-cold", BoxSettings(image=IMAGE, ram=SMALL))
        cold.up()
        pairs = []
        for _ in self.progress("cold boot"):
            self.dirty(box)
            above = self.timed(lambda: (box.restore("clean"), box.run(["true"])))
            cold.down()
            below = self.timed(lambda: (cold.up(), cold.run(["true"])))
            pairs.append((above, below))
        self.add("live restore until the first SSH command / cold boot to the same point", 0.1, pairs)
        for one in (box, cold):
            one.undefine(force=True)

    def snapshots(self) -> None:
        box = self.manager.define(f"{PREFIX}-taken", BoxSettings(image=IMAGE, ram=SMALL))
        booted, restored = [], []
        for _ in self.progress("snapshot"):
            box.reset()
            box.up()
            for pairs, touched in ((booted, 0), (restored, 150)):  # a guest that is up has touched 70 MiB itself
                self.touch(box, touched)
                taken = box.snapshot("taken")
                if taken.engine != "live":
                    raise SystemExit(f"The snapshot was {taken.engine}: nothing to measure.")
                runs_on = sum(taken.phases.values()) - taken.phases["proof and repair"]
                box.restore("taken")
                domain = self.domain(box)
                domain.end()
                start = self.timed(self.paused_start(box))
                box.restore("taken")
                box.remove_snapshot("taken")
                pairs.append((runs_on, start))
        self.add("snapshot of a booted box until it runs on / plain paused start", 2.0, booted)
        self.add("snapshot of a restored box, 220 MB touched, until it runs on / plain paused start", 4.0, restored)
        box.undefine(force=True)

    def forks(self) -> None:
        box = self.snapshotted("forked", SMALL, touched_mib=128)
        touched = touched_bytes(self.site.state.box(box.name).snapshot("clean").ram)
        pairs: list[tuple[float, float]] = []
        private: list[tuple[float, float]] = []
        for _ in self.progress("fork"):
            start = time.monotonic()
            with box.fork("clean", count=8, overcommit=True) as clones:
                above = time.monotonic() - start
                private += [(private_bytes(self.domain(clone).definition(live=True).uuid), touched) for clone in clones]
            below = self.timed(lambda: [box.restore("clean") for _ in range(8)])
            pairs.append((above, below))
        self.add("8 clones, all proven / 8 restores one after the other", 0.8, pairs)
        self.add("memory private to a clone after its proof / memory touched in the snapshot (bytes)", 0.06, private)
        box.undefine(force=True)

    def spares(self) -> None:
        box = self.snapshotted("spared", SMALL, touched_mib=128)
        pairs = []
        with self.manager.pool(f"{box.name}@clean", size=1, overcommit=True) as pool:
            for _ in self.progress("spare"):
                self.dirty(box)
                below, _phases = self.restore(box)
                pool.fill(LIMIT)
                start = time.monotonic()
                spare = pool.acquire()
                above = time.monotonic() - start
                spare.release()
                pairs.append((above, below))
        self.add("warm spare until it returns, proven, its clock right / live restore", 0.4, pairs)
        box.undefine(force=True)

    def inserts(self) -> None:
        box = self.snapshotted("inserted", SMALL, touched_mib=0)
        pairs = []
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            tree = Path(folder, "tree")
            for number in range(FILES):
                path = tree / f"{number // 100:02}" / f"{number:04}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{number}\n" * 50)
            for _ in self.progress("insert"):
                box.restore("clean")
                above = self.timed(lambda: box.insert([tree], to="/root/tree"))
                box.restore("clean")
                words = scp(box.ssh_command(), tree, "/root/tree")
                pairs.append((above, self.timed(lambda words=words: subprocess.run(words, check=True))))
        self.add(f"insert of a tree of {FILES} files into a running guest / scp -r of it", 0.3, pairs)
        box.undefine(force=True)

    def stored_files(self) -> None:
        box = self.snapshotted("filed", SMALL, touched_mib=0)
        pairs = []
        for _ in self.progress("store files"):
            box.restore("clean")
            above = self.timed(lambda: box.archive("bench-files"))
            self.manager.archives.remove("bench-files")
            box.restore("clean")
            pairs.append((above, self.timed(lambda: tar_by_hand(box.ssh_command(), self.manager.state_directory))))
        self.add("store of a running box as tar.zst / tar in the guest and zstd by hand", 1.3, pairs)
        box.undefine(force=True)

    def inventory(self) -> None:
        box = self.snapshotted("inventory", SMALL, touched_mib=0)
        bench_packages.add(box)
        box.inventory()  # what neither reads from the disk again
        box.run(["find", "/", "-xdev"])
        pairs = []
        for _ in self.progress("inventory"):
            above = self.timed(box.inventory)
            below = self.timed(lambda: box.run(["find", "/", "-xdev"]))
            pairs.append((above, below))
        self.add("whole inventory of a guest of 900 packages / 'find / -xdev' in it, both over SSH", 3.0, pairs)
        box.undefine(force=True)

    def trap_around_true(self) -> None:
        """Compare a trap around nothing, its inventory before taken from the snapshot, with one inventory."""
        from vmimagemanager.trap import Baseline

        box = self.snapshotted("trap", SMALL, touched_mib=0)
        baseline = self.site.state.path / "deps.toml"
        Baseline().write(baseline)
        box.inventory(snapshot="clean")

        def trap() -> None:
            with box.trap(baseline, since="clean") as trap:
                box.run(["true"])
            if trap.verdict.trapped:
                raise SystemExit("The trap around 'true' was sprung: nothing to measure.")

        pairs = []
        for number in self.progress("trap around true"):
            seconds = {}
            for deed in (trap, box.inventory) if number % 2 else (box.inventory, trap):
                box.restore("clean")
                seconds[deed] = self.timed(deed)
            pairs.append((seconds[trap], seconds[box.inventory]))
        self.add("trap around 'true', compared with a snapshot / one inventory", 1.3, pairs)
        box.undefine(force=True)

    def classification(self) -> None:
        from vmimagemanager.guest.inventory import Inventory, Package
        from vmimagemanager.trap import Baseline, compare
        from vmimagemanager.trap.explain import Need

        def package(number: int) -> Package:
            return Package(
                manager="dpkg",
                name=f"package-{number}",
                architecture="amd64",
                version="1.0-1",
                depends=tuple((f"package-{(number * 7 + step) % 5000}",) for step in range(1, 9)),
                provides=(f"virtual-{number}",),
            )

        packages = [package(number) for number in range(5000)]
        before, after = Inventory(frozenset(packages[:900])), Inventory(frozenset(packages))
        needs = [Need(managers=("dpkg",), names=(f"package-{number}",)) for number in range(1000, 1100)]
        seconds = []
        for _ in self.progress("classification"):
            start = time.process_time()
            compare(before, after, Baseline(), needs=needs)
            seconds.append(time.process_time() - start)
        self.add_seconds("CPU seconds to classify 5000 packages with their graph", 0.1, seconds)

    def traces(self) -> None:
        box = self.manager.define(
            f"{PREFIX}-traced", BoxSettings(image=bench_trap.compiling_image(self.manager), ram=SMALL)
        )
        box.up()
        bench_trap.lay_sources(box)
        box.snapshot("clean")
        by_times, by_listener = [], []
        for number in self.progress("trace"):
            ways = [None, "atime", "fanotify"]
            seconds = {}
            for how in ways[number % 3 :] + ways[: number % 3]:
                box.restore("clean")
                seconds[how] = bench_trap.built(box) if how is None else bench_trap.traced(box, how)
            by_times.append((seconds["atime"], seconds[None]))
            by_listener.append((seconds["fanotify"], seconds[None]))
        self.add("build traced by access times / without", 1.05, by_times)
        self.add("build traced by fanotify / without", 1.3, by_listener)
        box.undefine(force=True)

    def proofs(self) -> None:
        box = self.manager.define(f"{PREFIX}-proven", BoxSettings(image=IMAGE, ram=SMALL))
        box.up()
        bench_trap.lay_candidates(box)
        box.snapshot("clean")
        with self.manager.lease(box.name) as held:
            counts = bench_trap.proofs(held, self.progress)
        self._add(
            f"runs of a proof with {bench_trap.CANDIDATES} candidates, 2 of them needed",
            25,
            counts,
            (statistics.median(counts), 1.0),
        )
        box.undefine(force=True)

    def start_up(self) -> None:
        python = sys.executable
        pairs = [
            (cpu_seconds(python, "-c", "import vmimagemanager"), cpu_seconds(python, "-c", "pass"))
            for _ in self.progress("import")
        ]
        self.add_seconds(
            "CPU seconds of 'import vmimagemanager' above 'python -c pass'",
            0.08,
            [above - below for above, below in pairs],
        )
        program = str(Path(python).with_name("vmimagemanager"))
        self.add_seconds(
            "CPU seconds of 'vmimagemanager --help'",
            0.3,
            [cpu_seconds(program, "--help") for _ in self.progress("help")],
        )

    def images(self) -> None:
        """Compare boxes of a small and of a large image, from their definition until their domains run."""
        small, large = self.filled("small-image", Size(1 << 29)), self.filled("large-image", Size(8 << 30))
        pairs = []
        self.new_box(small)  # the first one reads this program from the disk
        for number in self.progress("image of 8 GiB and of 0.5 GiB"):
            order = (large, small) if number % 2 else (small, large)
            seconds = {image: self.new_box(image) for image in order}
            pairs.append((seconds[large], seconds[small]))
        self.add("new box of an image with 8 GiB of content until its domain starts / with 0.5 GiB", 1.1, pairs)
        for image in (large, small):
            self.manager.remove_image(image)

    def stores(self) -> None:
        """Compare a store of a box to which 64 MiB were written with a copy; both until they are on the disk."""
        box = self.manager.define(f"{PREFIX}-stored", BoxSettings(image=IMAGE, ram=SMALL))
        overlay = self.site.state.box(box.name).overlay
        with tempfile.TemporaryDirectory() as folder:  # something to take out, as in every box that was up
            key = Path(folder, "ssh_host_ed25519_key")
            key.write_text("a private key\n")
            box.insert([key], to="/etc/ssh")
        write_noise_behind(overlay, Size(64 << 20), Size(6 << 30))
        copy = self.site.state.path / "copy.qcow2"
        pairs = []
        for _ in self.progress("store"):
            above = self.timed(lambda: box.store("bench-stored"))
            below = self.timed(lambda: (qemu_img("convert", "-O", "qcow2", str(overlay), str(copy)), flush(copy)))
            copy.unlink()
            pairs.append((above, below))
            self.manager.remove_image("bench-stored")
        self.add("store of a box as qcow2 / qemu-img convert of the same disk", 1.3, pairs)
        box.undefine(force=True)

    def pulls(self) -> None:
        """Compare the bytes that travel: of an image, and of the next generation, of which 1 % differs."""
        url = str(self.site.state.path / "shared")
        pairs = []
        for number in self.progress("pull"):
            name = f"bench-pulled-{number}"
            box = self.manager.define(
                f"{PREFIX}-pulled", BoxSettings(image=self.filled(name, Size(1 << 28)), ram=SMALL)
            )
            write_noise(self.site.state.box(box.name).overlay, Size((1 << 28) // 100))
            self.manager.push_image(name, url)
            box.store(name)
            self.manager.push_image(name, url)
            folder = Path(tempfile.mkdtemp(prefix="vmim-bench-", dir="/var/tmp"))
            with Manager.open(uri=default_uri(), state_directory=folder / "state") as far:
                below = far.pull_image(f"{name}:1", url).travelled.bytes
                above = far.pull_image(f"{name}:2", url).travelled.bytes
            shutil.rmtree(folder)
            box.undefine(force=True)
            self.manager.remove_image(name)
            pairs.append((float(above), float(below)))
        self.add("pull of a generation that differs by 1 % from one that is there / of that one (bytes)", 0.1, pairs)

    def new_box(self, image: str) -> float:
        """Return the seconds from the definition of a box until its domain runs."""
        settings = BoxSettings(image=image, ram=SMALL, channel=Channel.NONE)
        start = time.monotonic()
        box = self.manager.define(f"{PREFIX}-of-{image}", settings)
        box.up()
        seconds = time.monotonic() - start
        box.undefine(force=True)
        return seconds

    def filled(self, name: str, size: Size) -> str:
        """Make an image whose disk is full of random bytes."""
        disk = self.site.state.path / f"{name}.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", str(disk), str(size.bytes + (1 << 30)))
        write_noise(disk, size)
        self.manager.images.add(name, disk)
        disk.unlink()
        return name

    # -- what is timed -------------------------------------------------------------------------------------------------

    def restore(self, box: Box) -> tuple[float, dict[str, float]]:
        start = time.monotonic()
        restored = box.restore("clean")
        seconds = time.monotonic() - start
        if restored.engine != "live" or not restored.proven:
            raise SystemExit(f"The restore was {restored.engine}, proven {restored.proven}: nothing to measure.")
        return seconds, restored.phases

    def bare_start(self, box: Box) -> float:
        """Destroy the running domain and start it paused as libvirt alone does; return both's seconds."""
        domain = self.domain(box)
        start = self.paused_start(box)
        return self.timed(lambda: (domain.end(), start()))

    def paused_start(self, box: Box) -> Callable[[], object]:
        """Return what starts the box paused, as libvirt alone does."""
        plain = DomainXml.read(self.site.state.box(box.name).definition)
        return lambda: self.hypervisor.start(plain, paused=True)

    # -- what is prepared ----------------------------------------------------------------------------------------------

    def snapshotted(self, name: str, ram: Size, *, touched_mib: int) -> Box:
        box = self.manager.define(f"{PREFIX}-{name}", BoxSettings(image=IMAGE, ram=ram))
        box.up()
        self.touch(box, touched_mib)
        box.snapshot("clean")
        return box

    def twin(self, ram: Size, *, touched_mib: int) -> Box:
        """Return a box that libvirt alone has started and snapshotted."""
        box = self.manager.define(f"{PREFIX}-twin", BoxSettings(image=IMAGE, ram=ram))
        virsh(self.hypervisor.uri, "start", box.name)
        box.up()
        self.touch(box, touched_mib)
        virsh(self.hypervisor.uri, "snapshot-create-as", box.name, "clean")
        return box

    def touch(self, box: Box, mebibytes: int) -> None:
        if mebibytes:
            fill = (
                "mount -o remount,size=95% /dev/shm && head -c 64M /dev/urandom >/dev/shm/some && "
                f"for each in $(seq {mebibytes // 64}); do cat /dev/shm/some; done >{FILLED} && rm /dev/shm/some"
            )
            self.agent(box).run(["/bin/sh", "-c", fill], limit=LIMIT).check()

    def read(self, box: Box, mebibytes: int) -> None:
        words = [f"if={FILLED}", "of=/dev/null", "bs=1M", f"count={mebibytes}", "status=none"]
        self.agent(box).run(["/bin/dd", *words], limit=LIMIT).check()

    def dirty(self, box: Box) -> None:
        line = "echo dirty > /root/canary && head -c 16M /dev/zero > /root/dirt && sync"
        self.agent(box).run(["/bin/sh", "-c", line], limit=LIMIT).check()

    def domain(self, box: Box) -> Domain:
        domain = self.site.domain(box.name)
        if domain is None:
            raise SystemExit(f"The box '{box.name}' is off.")
        return domain

    def agent(self, box: Box) -> Agent:
        return Agent(self.domain(box))

    def answers(self, box: Box) -> Agent:
        from vmimagemanager.deadline import Deadline

        agent = self.agent(box)
        agent.wait(Deadline(LIMIT), lambda: None)
        return agent

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def timed(self, deed: Callable[[], object]) -> float:
        """Return the seconds that a deed takes."""
        start = time.monotonic()
        deed()
        return time.monotonic() - start

    def progress(self, what: str) -> Iterator[int]:
        for number in range(self.pairs):
            print(f"{what}: pair {number + 1} of {self.pairs}", file=sys.stderr)
            yield number

    def add(self, name: str, at_most: float, pairs: list[tuple[float, float]]) -> None:
        above, below = (statistics.median(column) for column in zip(*pairs, strict=True))
        self._add(name, at_most, [first / second for first, second in pairs], (above, below))

    def add_seconds(self, name: str, at_most: float, seconds: list[float]) -> None:
        self._add(name, at_most, seconds, (statistics.median(seconds), 1.0))

    def _add(self, name: str, at_most: float, values: list[float], medians: tuple[float, float]) -> None:
        low, _, high = statistics.quantiles(values, n=4)
        self.rows.append(
            Row(
                name=name,
                at_most=at_most,
                median=round(statistics.median(values), 3),
                quartiles=(round(low, 3), round(high, 3)),
                pairs=len(values),
                above=round(medians[0], 3),
                below=round(medians[1], 3),
            )
        )


ROWS = {
    "floor": Bench.against_the_floor,
    "memory": Bench.memory_does_not_matter,
    "huge": Bench.huge_memory_does_not_matter,
    "plot": Bench.time_against_memory,
    "boot": Bench.against_a_boot,
    "snapshots": Bench.snapshots,
    "forks": Bench.forks,
    "spares": Bench.spares,
    "insert": Bench.inserts,
    "store-files": Bench.stored_files,
    "inventory": Bench.inventory,
    "trap-around-true": Bench.trap_around_true,
    "classification": Bench.classification,
    "trace": Bench.traces,
    "proof": Bench.proofs,
    "start-up": Bench.start_up,
    "define": Bench.images,
    "store": Bench.stores,
    "pull": Bench.pulls,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="pairs a row (10)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too, as they come")
    parser.add_argument("--plot", type=Path, help="draw the plot of time against memory into this .png, and an .svg")
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="which rows (all)")
    options = parser.parse_args()
    with bench(options.pairs) as running:
        for name in options.rows or ROWS:
            ROWS[name](running)
            if options.json:
                write_json(running.rows, options.json)
    print_table(running.rows)
    if options.plot and running.series:
        from bench_plot import draw

        draw(running.series, options.plot)
    return 0 if all(row.met for row in running.rows) else 1


@contextmanager
def bench(pairs: int) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="vmim-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with Manager.open(uri=default_uri(), state_directory=folder) as manager:
            manager.images.build(IMAGE)
            try:
                yield Bench(manager, pairs)
            finally:
                for name in manager.boxes():
                    with suppress(Exception):
                        manager.box(name).undefine(force=True)
    finally:
        shutil.rmtree(folder)


def write_json(rows: list[Row], path: Path) -> None:
    path.write_text(json.dumps({"format": 1, "kind": "bench", "rows": [asdict(row) for row in rows]}))


def print_table(rows: list[Row]) -> None:
    table = Table("figure", "at most", "median", "quartiles", "pairs", "s above", "s below", "", box=None)
    for row in rows:
        quartiles = f"{row.quartiles[0]:.3f} {row.quartiles[1]:.3f}"
        medians = (f"{row.above:.3f}", f"{row.below:.3f}")
        verdict = "met" if row.met else "NOT MET"
        table.add_row(row.name, f"{row.at_most}", f"{row.median:.3f}", quartiles, str(row.pairs), *medians, verdict)
    Console(width=150).print(table)


def touched_bytes(ram: Path) -> int:
    """Return how much of a RAM file is not zero, in whole pages."""
    empty = bytes(PAGE)
    with ram.open("rb") as stream:
        return sum(PAGE for page in iter(lambda: stream.read(PAGE), b"") if page != empty)


def private_bytes(uuid: str) -> int:
    """Return what the QEMU of a domain has written to of its RAM file's mapping (proc(5), smaps)."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"-uuid\0{uuid}\0".encode() in (folder / "cmdline").read_bytes():
                parts = (folder / "smaps").read_text().split("VmFlags:")
                mappings = [part for part in parts if re.search(r"/snapshots/[^/\n]+/ram\n", part)]
                numbers = [int(kib) for part in mappings for kib in re.findall(r"Private_Dirty:\s+(\d+) kB", part)]
                return sum(numbers) << 10
    raise SystemExit(f"No QEMU runs the domain {uuid}.")


def qemu_img(*words: str) -> None:
    subprocess.run(["qemu-img", *words], check=True, stdout=subprocess.DEVNULL)


def flush(path: Path) -> None:
    subprocess.run(["sync", str(path)], check=True)


def write_noise(disk: Path, size: Size) -> None:
    """Write random bytes to the beginning of a qcow2 that nobody has open."""
    with tempfile.NamedTemporaryFile(dir=disk.parent) as noise:
        subprocess.run(["head", "-c", str(size.bytes), "/dev/urandom"], check=True, stdout=noise)
        words = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", noise.name, str(disk)]
        subprocess.run(words, check=True)


def write_noise_behind(disk: Path, size: Size, offset: Size) -> None:
    """Write random bytes to where the file system of a qcow2 that nobody has open is free."""
    with tempfile.NamedTemporaryFile(dir=disk.parent) as noise:
        subprocess.run(["head", "-c", str(size.bytes), "/dev/urandom"], check=True, stdout=noise)
        command = f"write -q -s {noise.name} {offset.bytes} {size.bytes}"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(disk)], check=True)


def drop_page_cache() -> None:
    """Make the kernel forget what it has read; needs root."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def revert(uri: str, twin: Box) -> None:
    virsh(uri, "snapshot-revert", twin.name, "clean")


def scp(ssh: tuple[str, ...], source: Path, target: str) -> list[str]:
    """Return the words that copy a tree with OpenSSH's client, of those that log in with it."""
    *options, _, port, login = ssh[1:]
    return ["scp", "-q", "-r", *options, "-P", port, str(source), f"{login}:{target}"]


def tar_by_hand(ssh: tuple[str, ...], folder: Path) -> None:
    """Archive a guest's file system as an administrator would; nothing of it is kept."""
    target = folder / "by-hand.tar.zst"
    words = [*ssh, "tar --create --one-file-system --numeric-owner --acls --xattrs --sparse --directory=/ ."]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tar,
        subprocess.Popen(["zstd", "-q", "-T0", "-o", target], stdin=tar.stdout) as zstd,
    ):
        assert tar.stdout is not None
        tar.stdout.close()
        if zstd.wait() or tar.wait() > 1:  # 1: a file changed meanwhile
            raise SystemExit("The guest's files could not be archived by hand.")
    target.unlink()


def virsh(uri: str, *words: str) -> None:
    subprocess.run(["virsh", "-q", "-c", uri, *words], check=True, stdout=subprocess.DEVNULL)


def cpu_seconds(*argv: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


if __name__ == "__main__":
    sys.exit(main())
