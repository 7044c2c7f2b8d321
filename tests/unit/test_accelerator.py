"""Choosing the accelerator: the decision with every outcome, the memory, and the real probe on this host."""

from __future__ import annotations

import json
import os
import runpy
import signal
import struct
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmimagemanager import process, records
from vmimagemanager.errors import HypervisorError, ToolError, UsageError
from vmimagemanager.hypervisor import accelerator, kvmprobe
from vmimagemanager.hypervisor.accelerator import Accelerator, Choice, Finding, Outcome

GOOD = Finding(outcome=Outcome.GOOD, seconds=0.0009)
WRONG = Finding(outcome=Outcome.WRONG, detail="KVM_EXIT_INTERNAL_ERROR, suberror 1")
PROBE = Path(kvmprobe.__file__)

needs_kvm = pytest.mark.skipif(
    os.uname().machine != "x86_64" or not os.access("/dev/kvm", os.R_OK | os.W_OK),
    reason="/dev/kvm cannot be opened here",
)


class Host:
    """A host whose device and QEMU are files, whose architecture is x86_64, and whose probe finds what it is told."""

    def __init__(self, folder: Path) -> None:
        self.finding = GOOD
        self.probes = 0
        self.device = folder / "kvm"
        self.device.write_text("")
        self.cache = folder / "state" / "cache"
        self.emulator = folder / "qemu"
        self.make_emulator("tcg", "kvm")

    def make_emulator(self, *accelerators: str) -> None:
        self.emulator.write_text("#!/bin/sh\n" + "".join(f"echo {name}\n" for name in accelerators))
        self.emulator.chmod(0o755)

    def measure(self, device: Path) -> Finding:
        assert device == self.device
        self.probes += 1
        return self.finding

    def choose(self, requested: accelerator.Requested = "auto") -> Choice:
        return accelerator.choose(requested, self.cache, emulator=self.emulator)

    @property
    def record(self) -> Path:
        return self.cache / accelerator.RECORD


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(accelerator, "DEVICE", made.device)
    monkeypatch.setattr(accelerator, "measure", made.measure)
    _pretend_architecture(monkeypatch, "x86_64")
    return made


def _pretend_architecture(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    real = os.uname()
    system = SimpleNamespace(machine=machine, release=real.release, version=real.version)
    monkeypatch.setattr(os, "uname", lambda: system)


def test_auto_takes_kvm_when_kernel_code_runs_at_full_speed(host: Host) -> None:
    choice = host.choose()

    assert choice.accelerator is Accelerator.KVM
    assert "0.9 ms" in choice.reason
    assert not choice.cached


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.GOOD])
def test_auto_takes_emulation_after_any_other_outcome(host: Host, outcome: Outcome) -> None:
    host.finding = Finding(outcome=outcome, detail="something odd")

    assert host.choose().accelerator is Accelerator.TCG


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_explained_by_one_whole_sentence(outcome: Outcome) -> None:
    sentence = accelerator.explain(Finding(outcome=outcome, detail="that", seconds=None))

    assert sentence.endswith(("so KVM is used.", "so emulation is used."))
    assert sentence.count(". ") == 0
    assert "None" not in sentence


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.GOOD])
def test_kvm_that_was_asked_for_and_does_not_work_is_an_error_with_a_way_out(host: Host, outcome: Outcome) -> None:
    host.finding = Finding(outcome=outcome)

    with pytest.raises(HypervisorError, match="KVM was asked for") as caught:
        host.choose("kvm")

    assert "'tcg'" in caught.value.hint


def test_kvm_that_was_asked_for_and_works_is_granted(host: Host) -> None:
    assert host.choose("kvm").accelerator is Accelerator.KVM


def test_emulation_that_was_asked_for_is_granted_without_a_probe(host: Host) -> None:
    assert host.choose("tcg").accelerator is Accelerator.TCG
    assert host.probes == 0
    assert not host.cache.exists()


def test_an_unknown_accelerator_is_refused_by_name(host: Host) -> None:
    with pytest.raises(UsageError, match="'xen' is not an accelerator"):
        accelerator.choose("xen", host.cache)  # type: ignore[arg-type]


def test_a_second_choice_remembers_the_first_with_its_reason(host: Host) -> None:
    first = host.choose()

    assert host.choose() == Choice(accelerator=first.accelerator, reason=first.reason, cached=True)
    assert host.probes == 1


def test_a_bad_verdict_is_remembered_too(host: Host) -> None:
    host.finding = WRONG
    host.choose()
    host.finding = GOOD

    assert host.choose() == Choice(accelerator=Accelerator.TCG, reason=accelerator.explain(WRONG), cached=True)


def test_asking_for_kvm_measures_again_where_only_a_bad_verdict_is_remembered(host: Host) -> None:
    host.finding = WRONG
    host.choose()
    host.finding = GOOD

    assert host.choose("kvm") == Choice(accelerator=Accelerator.KVM, reason=accelerator.explain(GOOD), cached=False)
    assert host.choose().accelerator is Accelerator.KVM


def test_another_qemu_is_measured_anew(host: Host) -> None:
    host.choose()
    host.make_emulator("tcg", "kvm", "xen")

    assert not host.choose().cached


def test_another_device_node_is_measured_anew(host: Host) -> None:
    host.choose()
    replacement = host.device.with_name("kvm-after-another-module")
    replacement.write_text("")
    replacement.rename(host.device)

    assert not host.choose().cached


@pytest.mark.parametrize("part", ["host", "boot", "kernel"])
def test_a_record_of_another_host_boot_or_kernel_is_not_believed(host: Host, part: str) -> None:
    host.choose()
    record = records.read(host.record, version=1)
    record["key"][part] += "-other"
    records.write(host.record, record, version=1)

    assert not host.choose().cached


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\xff\x00",
        b"format = 1",
        b"format = 99\n",
        b'format = "1"',
        b"key = [",
    ],
)
def test_a_damaged_record_is_ignored_and_written_anew(host: Host, damage: bytes) -> None:
    host.cache.mkdir(parents=True)
    host.record.write_bytes(damage)

    assert not host.choose().cached
    assert host.choose().cached


@pytest.mark.parametrize(
    ("name", "value"),
    [("outcome", "splendid"), ("detail", 7), ("seconds", "fast"), ("measured", "today"), ("key", "mine")],
)
def test_a_record_with_one_wrong_value_is_ignored_and_written_anew(host: Host, name: str, value: object) -> None:
    host.choose()
    records.write(host.record, {**records.read(host.record, version=1), name: value}, version=1)

    assert not host.choose().cached
    assert host.choose().cached


@pytest.mark.parametrize("outcome", [Outcome.SLOW, Outcome.HUNG, Outcome.CRASHED])
def test_what_may_have_been_a_busy_moment_is_forgotten_after_an_hour(host: Host, outcome: Outcome) -> None:
    host.finding = Finding(outcome=outcome)
    host.choose()
    assert host.choose().cached

    record = records.read(host.record, version=1)
    records.write(host.record, {**record, "measured": time.time() - 3601}, version=1)

    assert not host.choose().cached


def test_a_verdict_about_the_caller_is_not_kept_for_the_next_one(host: Host) -> None:
    host.finding = Finding(outcome=Outcome.DENIED, detail="open: Permission denied")
    host.choose()

    assert not host.record.exists()


def test_a_cache_that_cannot_be_written_does_not_prevent_the_choice(host: Host) -> None:
    host.cache.parent.write_text("a file where the folder should be")

    assert host.choose().accelerator is Accelerator.KVM


def test_a_missing_device_is_seen_without_a_probe(host: Host) -> None:
    host.device.unlink()

    assert "there is no" in host.choose().reason
    assert host.probes == 0


def test_a_device_that_may_not_be_opened_names_the_group_to_join(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def access(path: Path, mode: int) -> bool:
        return path != host.device

    monkeypatch.setattr(os, "access", access)
    choice = host.choose()

    assert choice.accelerator is Accelerator.TCG
    assert "usermod -aG kvm" in choice.reason
    assert host.probes == 0


def test_another_architecture_is_emulated_because_there_is_no_probe(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_architecture(monkeypatch, "aarch64")
    choice = host.choose()

    assert choice.accelerator is Accelerator.TCG
    assert "no probe for this host's architecture (aarch64)" in choice.reason


def test_a_qemu_built_without_kvm_is_not_asked_to_use_it(host: Host) -> None:
    host.make_emulator("tcg", "xen")
    choice = host.choose()

    assert choice.accelerator is Accelerator.TCG
    assert "built without KVM" in choice.reason


def test_a_qemu_that_is_missing_or_broken_does_not_change_the_verdict(host: Host) -> None:
    host.emulator.write_text("#!/bin/sh\nexit 1\n")
    assert host.choose().accelerator is Accelerator.KVM
    host.emulator.unlink()
    assert host.choose().accelerator is Accelerator.KVM


def _finished(status: int, stdout: bytes = b"", stderr: bytes = b"") -> process.Finished:
    return process.Finished(argv=("probe",), status=status, stdout=stdout, stderr=stderr)


def test_a_probe_that_the_kernel_ended_after_a_second_means_hung() -> None:
    assert accelerator.read_report(_finished(-signal.SIGALRM)).outcome is Outcome.HUNG


@pytest.mark.parametrize(
    "stdout",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"\xff",
        b'"good"',
        b'{"outcome": "great", "detail": ""}',
        b'{"outcome": "good", "detail": null, "seconds": null}',
        b'{"outcome": "good", "detail": "", "seconds": "0.1"}',
    ],
)
def test_a_probe_that_talks_nonsense_means_crashed_and_quotes_its_last_words(stdout: bytes) -> None:
    finding = accelerator.read_report(_finished(-11, stdout, b"first\nlast words\n"))

    assert finding.outcome is Outcome.CRASHED
    assert "status -11: last words" in finding.detail


def test_a_probe_that_cannot_be_started_means_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> process.Finished:
        raise ToolError("The program 'python' is not installed.")

    monkeypatch.setattr(process, "run", refuse)

    assert accelerator.measure().outcome is Outcome.CRASHED


# The program itself.


def _jump(code: bytes, opcode: int, after: int) -> int:
    """Return where the last short jump of ``code`` with ``opcode``, at or after ``after``, goes."""
    at = code.index(bytes([opcode]), after)
    (distance,) = struct.unpack_from("<b", code, at + 1)
    target: int = at + 2 + distance
    return target


def test_the_guest_loops_over_its_integer_loop_and_then_starts_again() -> None:
    loop = kvmprobe.GUEST.index(bytes.fromhex("48ffc9"))

    assert _jump(kvmprobe.GUEST, 0x75, loop) == loop
    assert _jump(kvmprobe.GUEST, 0xEB, len(kvmprobe.GUEST) - 2) == 0


def test_the_probe_knows_no_outcome_that_the_choice_does_not() -> None:
    source = PROBE.read_text()
    known = {"good", "slow", "absent", "denied", "broken", "wrong"}

    assert all(f'"{name}"' in source for name in known)
    assert known <= set(Outcome)


def test_the_probe_reports_a_missing_device(tmp_path: Path) -> None:
    assert accelerator.measure(tmp_path / "kvm").outcome is Outcome.ABSENT


def test_the_probe_reports_a_device_that_is_something_else() -> None:
    finding = accelerator.measure(Path("/dev/null"))

    assert finding.outcome is Outcome.BROKEN
    assert finding.detail.startswith("KVM_GET_API_VERSION")


@pytest.mark.skipif(os.getuid() == 0, reason="root may open everything")
def test_the_probe_reports_a_device_that_may_not_be_opened(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(mode=0)

    assert accelerator.measure(device).outcome is Outcome.DENIED


def test_the_probe_imports_nothing_of_the_package_nor_of_anybody_else() -> None:
    program = f"import sys; sys.path.insert(0, {str(PROBE.parent)!r}); import kvmprobe; print(*sys.modules)"
    loaded = process.run([sys.executable, "-I", "-S", "-c", program]).stdout.decode().split()

    assert {name for name in loaded if name.startswith("vmimagemanager")} == set()
    assert "subprocess" not in loaded
    assert "typing" not in loaded


@needs_kvm
def test_a_real_probe_decides_and_the_choice_follows_it(tmp_path: Path) -> None:
    finding = accelerator.measure()
    choice = accelerator.choose("auto", tmp_path)

    assert finding.outcome in {Outcome.GOOD, Outcome.SLOW, Outcome.WRONG, Outcome.HUNG, Outcome.BROKEN}
    assert (choice.accelerator is Accelerator.KVM) == finding.good
    assert accelerator.choose("auto", tmp_path) == Choice(
        accelerator=choice.accelerator, reason=choice.reason, cached=True
    )


@needs_kvm
def test_the_reference_machines_interpreting_kvm_is_not_taken(tmp_path: Path) -> None:
    if not Path("/sys/module/kvm_pvm").exists() and not _interprets():
        pytest.skip("this host's KVM runs kernel code at full speed")

    choice = accelerator.choose("auto", tmp_path)

    assert choice.accelerator is Accelerator.TCG
    assert "does not run 64-bit kernel code" in choice.reason or "far too slowly" in choice.reason


def _interprets() -> bool:
    """Say whether an integer loop alone, without any instruction that an interpreter may lack, is far too slow."""
    loop = kvmprobe.GUEST[kvmprobe.GUEST.index(b"\xb9" + struct.pack("<I", kvmprobe.TURNS)) :]
    plain = b"\xb3" + bytes([kvmprobe.PATTERN & 0xFF]) + loop  # mov bl, the byte that is expected
    plain = plain[:-1] + struct.pack("<b", -len(plain))
    return bool(_probe(plain)["outcome"] == "slow")


def _probe(guest: bytes) -> dict[str, Any]:
    program = f"import json, runpy; print(json.dumps(runpy.run_path({str(PROBE)!r})['probe'](guest={guest!r})))"
    report: dict[str, Any] = json.loads(process.run([sys.executable, "-I", "-S", "-c", program]).stdout)
    return report


@needs_kvm
@pytest.mark.parametrize(
    ("guest", "exit_name"), [(b"\xf4", "KVM_EXIT_HLT"), (b"\x0f\x0b", "KVM_EXIT_SHUTDOWN")], ids=["hlt", "ud2"]
)
def test_a_guest_that_ends_otherwise_than_expected_is_wrong(guest: bytes, exit_name: str) -> None:
    assert _probe(guest) == {"outcome": "wrong", "detail": exit_name, "seconds": None}


@needs_kvm
def test_a_guest_that_writes_the_wrong_byte_is_wrong() -> None:
    report = _probe(bytes.fromhex("b0 11 e6 f4"))

    assert report["outcome"] == "wrong"
    assert "0x11" in report["detail"]


@needs_kvm
def test_a_probe_leaves_no_descriptor_open() -> None:
    probe: Callable[..., object] = runpy.run_path(str(PROBE))["probe"]
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    probe()
    probe(guest=b"\xf4")

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


ENDLESS = (
    f"import runpy; probe = runpy.run_path({str(PROBE)!r}); probe['arm'](); probe['probe'](guest=bytes([0xeb, 0xfe]))"
)


@needs_kvm
def test_a_guest_that_never_comes_back_is_ended_after_a_second_by_the_kernel() -> None:
    start = time.monotonic()
    finished = process.run([sys.executable, "-I", "-S", "-c", ENDLESS], check=False, limit=timedelta(seconds=20))

    assert accelerator.read_report(finished).outcome is Outcome.HUNG
    assert 0.9 < time.monotonic() - start < 10


@needs_kvm
def test_the_guest_that_never_comes_back_is_ended_even_where_its_parent_ignores_the_alarm() -> None:
    previous = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        finished = process.run([sys.executable, "-I", "-S", "-c", ENDLESS], check=False, limit=timedelta(seconds=20))
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert finished.status == -signal.SIGALRM
