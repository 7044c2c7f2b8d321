"""Proof and repair after a restore, in one agent command.

The *token* is a value that lives in the guest's memory only (a file on its tmpfs /run).  It is planted before a
snapshot; a guest that shows it afterwards is that snapshot, neither a reboot nor yesterday's leftover.  The same
command replaces it, sets the clock, and gives the kernel's random number generator fresh seed with the ioctl
RNDRESEEDCRNG, because a generation id alone reseeds only kernels with CONFIG_VMGENID.  Generators of programs that run
already are not reseeded by anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from vmimagemanager.errors import GuestError
from vmimagemanager.guest.agent import Agent
from vmimagemanager.guest.result import Result

TOKEN_FILE = "/run/vmimagemanager-token"  # noqa: S105
_SEED = 64
_RESEED = 0x5207  # RNDRESEEDCRNG in linux/random.h
_CLOCK_SETTIME = {"x86_64": 227, "aarch64": 112, "riscv64": 112}  # asm/unistd_64.h, asm-generic/unistd.h

# Arguments: the token to leave behind, the time since the epoch, the number of the system call clock_settime.  Standard
# input: the seed.  A second process (date, uname) would cost as much again under emulation.
_PERL = f"""
my ($next, $now, $clock_settime) = @ARGV;
my $clock = "no";
my ($seconds, $nanoseconds) = split /\\./, $now;
$clock = "yes" if $clock_settime && syscall($clock_settime, 0, pack("q q", $seconds, $nanoseconds)) == 0;
my $reseeded = "no";
read(STDIN, my $seed, {_SEED});
if (open(my $random, "+<", "/dev/urandom")) {{
    syswrite($random, $seed);
    $reseeded = "yes" if ioctl($random, {_RESEED}, 0);
}}
sub slurp {{ open(my $file, "<", $_[0]) or return "none"; my $line = <$file>; chomp $line; return $line; }}
my ($token, $boot) = (slurp("{TOKEN_FILE}"), slurp("/proc/sys/kernel/random/boot_id"));
if (open(my $file, ">", "{TOKEN_FILE}")) {{ chmod 0600, "{TOKEN_FILE}"; print $file "$next\\n"; close $file; }}
print "$token $boot clock=$clock random=$reseeded\\n";
"""
_SHELL = f"""
clock=no
date -u -s "@${{2}}" >/dev/null 2>&1 && clock=yes
cat > /dev/urandom
token=$(cat {TOKEN_FILE} 2>/dev/null || echo none)
umask 077
printf '%s\\n' "$1" > {TOKEN_FILE}
echo "$token $(cat /proc/sys/kernel/random/boot_id) clock=$clock random=no"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a guest said after a restore: its token and boot id, and what of the repair succeeded."""

    token: str
    boot_id: str
    clock_set: bool
    random_reseeded: bool
    seconds: float


def new_token() -> str:
    """Return a value that nobody can guess and that was never used before."""
    return os.urandom(16).hex()


def plant_and_repair(
    agent: Agent, token: str, limit: timedelta, *, check: Callable[[], None], architecture: str = "x86_64"
) -> Proof:
    """Read the guest's token and leave ``token`` in its place, set its clock and reseed its random numbers.

    Uses perl where the guest has it, else sh, which can set the clock but not make the kernel use the seed at once: the
    proof says so.  ``check`` raises when there is no more hope; GuestError says that the answer makes no sense.
    """

    def run(argv: list[str]) -> Result:
        return agent.run(argv, stdin=os.urandom(_SEED), limit=limit, check=check)

    number = str(_CLOCK_SETTIME.get(architecture, 0))
    try:
        result = run(["/usr/bin/perl", "-e", _PERL, token, _now(), number])
    except GuestError as error:
        if "Failed to execute" not in str(error):
            raise
        result = run(["/bin/sh", "-c", _SHELL, "repair", token, _now()])
    words = result.text.split()
    if result.status != 0 or len(words) != 4:
        raise GuestError(
            "The guest was restored, but could not be proven and repaired.",
            detail=result.stderr.decode("utf-8", "replace").strip(),
        )
    return Proof(
        token=words[0],
        boot_id=words[1],
        clock_set=words[2] == "clock=yes",
        random_reseeded=words[3] == "random=yes",
        seconds=result.seconds,
    )


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{seconds}.{nanoseconds:09d}"
