"""Proof and repair after a restore: a line to a process that waits in the guest, or else one agent command.

The *token* is a value that lives in the guest's memory only (a file on its tmpfs /run).  It is planted before a
snapshot; a guest that shows it afterwards is that snapshot, neither a reboot nor yesterday's leftover.  The same
line replaces it, sets the clock, and gives the kernel's random number generator fresh seed with the ioctl
RNDRESEEDCRNG, because a generation id alone reseeds only kernels with CONFIG_VMGENID.  Generators of programs that run
already are not reseeded by anything.

The *waiter* is started by the agent when a guest is up, and sleeps on a channel of its own until the host writes to it.
A snapshot keeps it, in its memory, so that what a restore asks of it needs no new process in the guest, which is most
of an agent command's time.  A guest without one (no perl, no virtio-serial, killed) is asked through the agent.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from vmimagemanager.deadline import Deadline, Stopwatch
from vmimagemanager.errors import DeadlineError, GuestError, GuestUnreachableError, HypervisorError
from vmimagemanager.guest.result import Runner

_log = logging.getLogger(__name__)

TOKEN_FILE = "/run/vmimagemanager-token"  # noqa: S105
_SEED = 64
_NOT_FOUND = 127  # a shell's status for a program that is not there
_RESEED = 0x5207  # RNDRESEEDCRNG in linux/random.h
_SIGIO = 29  # asm-generic/signal.h; perl-base's POSIX does not know it
_CLOCK_SETTIME = {"x86_64": 227, "aarch64": 112, "riscv64": 112}  # asm/unistd_64.h, asm-generic/unistd.h
_WAITER_LIMIT = timedelta(seconds=3)  # for a process that runs already and needs milliseconds
_GRACE = timedelta(seconds=0.2)  # for a guest that was just resumed to say that its end of the channel is open

# Argument: the name of the waiter's channel.  Standard input and each line on the channel: the token to leave behind,
# the time since the epoch, the number of the system call clock_settime, and the seed in hexadecimal digits; for a
# clone also its host name and its machine-id.  A second process (date, uname) would cost as much again under
# emulation.  The channel's device has one user at a time: opening it fails where a waiter is there already.  A read
# returns nothing while the host is not connected, and SIGIO says when that changes; it is blocked but while it is
# waited for, so that none gets lost.  A write waits for the host: the guest may hear of its line before it hears that
# it is connected.  So an answer may come when nobody waits for it any more: each begins with the token that it is the
# answer to, and the file keeps the token before, for who asks once more.
_PERL = f"""
use Fcntl;
use POSIX ();
$| = 1;
sub slurp {{ open(my $file, "<", $_[0]) or return "none"; my $line = <$file>; chomp $line; return $line; }}
sub spill {{
    open(my $file, ">", $_[0]) or return 0;
    return print($file "$_[1]\\n") && close($file);
}}
sub become {{
    my ($host_name, $machine_id) = @_;
    my $done = spill("/proc/sys/kernel/hostname", $host_name) && spill("/etc/hostname", $host_name);
    return $done && spill("/etc/machine-id", $machine_id) ? "yes" : "no";
}}
sub repaired {{
    my ($next, $now, $clock_settime, $seed, @identity) = split / /, $_[0];
    my ($seconds, $nanoseconds) = split /\\./, $now;
    my ($clock, $reseeded) = ("no", "no");
    $clock = "yes" if $clock_settime && syscall($clock_settime + 0, 0, pack("q q", $seconds, $nanoseconds)) == 0;
    if (open(my $random, "+<", "/dev/urandom")) {{
        syswrite($random, pack("H*", $seed));
        $reseeded = "yes" if ioctl($random, {_RESEED}, 0);
    }}
    my ($token, $before) = split / /, slurp("{TOKEN_FILE}");
    $token = $before if $token eq $next;
    umask 077;
    if (open(my $file, ">", "{TOKEN_FILE}")) {{ print $file "$next $token\\n"; close $file; }}
    my $boot = slurp("/proc/sys/kernel/random/boot_id");
    my $identity = @identity ? become(@identity) : "kept";
    return "$next $token $boot clock=$clock random=$reseeded identity=$identity\\n";
}}
chomp(my $line = <STDIN>);
print repaired($line);
my ($found) = grep {{ slurp("$_/name") eq $ARGV[0] }} glob("/sys/class/virtio-ports/*") or exit 0;
sysopen(my $channel, "/dev/" . substr($found, rindex($found, "/") + 1), O_RDWR) or exit 0;
my $blocked = POSIX::SigSet->new({_SIGIO});
POSIX::sigprocmask(POSIX::SIG_BLOCK(), $blocked);
$SIG{{IO}} = sub {{}};
defined(my $child = fork) or exit 0;
exit 0 if $child;
POSIX::setsid();
chdir "/";
$0 = "vmimagemanager-waiter";
open(STDIN, "<", "/dev/null"); open(STDOUT, ">", "/dev/null"); open(STDERR, ">", "/dev/null");
fcntl($channel, F_SETOWN, $$ + 0);
fcntl($channel, F_SETFL, O_RDWR | O_ASYNC);
my $asked = "";
while (1) {{
    my $count = sysread($channel, my $some, 4096);
    if (!$count) {{
        $asked = "";
        POSIX::sigsuspend(POSIX::SigSet->new());
        next;
    }}
    $asked .= $some;
    while ($asked =~ s/^(.*)\\n//) {{ syswrite($channel, repaired($1)); }}
}}
"""
_SHELL = f"""
read -r next now number seed host_name machine_id
clock=no
identity=kept
become() {{
    printf '%s\\n' "$host_name" > /proc/sys/kernel/hostname || return
    printf '%s\\n' "$host_name" > /etc/hostname || return
    printf '%s\\n' "$machine_id" > /etc/machine-id
}}
if [ -n "$machine_id" ]; then
    identity=no
    become >&2 && identity=yes
fi
date -u -s "@$now" >/dev/null 2>&1 && clock=yes
printf '%s' "$seed" > /dev/urandom
read -r token before 2>/dev/null < {TOKEN_FILE} || token=none
[ "$token" != "$next" ] || token=$before
umask 077
printf '%s %s\\n' "$next" "$token" > {TOKEN_FILE}
echo "$next $token $(cat /proc/sys/kernel/random/boot_id) clock=$clock random=no identity=$identity"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneIdentity:
    """What a clone gets of its own: host name and machine-id."""

    host_name: str
    machine_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a guest said after a restore: its token and boot id, and what of the repair succeeded.

    ``identity`` is ``kept``, or whether the clone took what it was given: ``yes`` or ``no``.
    """

    token: str
    boot_id: str
    clock_set: bool
    random_reseeded: bool
    identity: str
    seconds: float


class Waiter(Protocol):
    """The host's end of the channel on which a process in the guest waits."""

    name: str

    def listens(self) -> bool:
        """Tell whether a program in the guest has the channel open."""

    def ask(self, line: str, answer: str, deadline: Deadline, check: Callable[[], None]) -> str:
        """Send a line and return the line that begins with ``answer``."""


def new_token() -> str:
    """Return a value that nobody can guess and that was never used before."""
    return os.urandom(16).hex()


def plant_and_repair(
    waiter: Waiter,
    runner: Callable[[], Runner],
    token: str,
    limit: timedelta,
    *,
    check: Callable[[], None],
    identity: CloneIdentity | None = None,
    architecture: str = "x86_64",
) -> Proof:
    """Read the guest's token and leave ``token`` in its place, set its clock and reseed its random numbers.

    A clone gets its ``identity``, too.

    ``runner`` returns what runs programs in the guest, and is called when there is no waiter; one is started then, for
    the next time.  Without perl in the guest it is sh, which can set the clock but not make the kernel use the seed at
    once: the proof says so.  ``check`` raises when there is no more hope; GuestError says that the answer makes no
    sense.
    """
    watch = Stopwatch()

    def line() -> str:
        words = f"{token} {_now()} {_CLOCK_SETTIME.get(architecture, 0)} {os.urandom(_SEED).hex()}"
        return words if identity is None else f"{words} {identity.host_name} {identity.machine_id}"

    def run(argv: list[str]) -> str:
        result = runner().run(argv, stdin=f"{line()}\n".encode(), limit=limit, check=check)
        if result.status == _NOT_FOUND:
            raise GuestError(f"Failed to execute '{argv[0]}'.")
        if result.status != 0:
            raise GuestError(
                "The guest could not be proven and repaired.", detail=result.stderr.decode("utf-8", "replace").strip()
            )
        return result.text

    try:
        answer = _asked(waiter, line(), token, check)
    except (DeadlineError, GuestUnreachableError, HypervisorError) as error:
        _log.debug("no waiter answers, asking the guest: %s", error)
        try:
            answer = run(["/usr/bin/perl", "-e", _PERL, waiter.name])
        except GuestError as refusal:
            if "Failed to execute" not in str(refusal):
                raise
            answer = run(["/bin/sh", "-c", _SHELL])
    return _proof(answer, token, watch.total)


def _asked(waiter: Waiter, line: str, token: str, check: Callable[[], None]) -> str:
    grace = Deadline(_GRACE, scaled=False)

    def hopeful() -> None:
        check()
        if grace.expired and not waiter.listens():
            raise GuestUnreachableError("No process waits in the guest.")

    return waiter.ask(line, token, Deadline(_WAITER_LIMIT), hopeful)


def _proof(answer: str, token: str, seconds: float) -> Proof:
    words = answer.split()
    if len(words) < 3 or words[0] != token:
        raise GuestError(f"The guest's proof makes no sense: '{answer[:80]}'.")
    told = dict(word.partition("=")[::2] for word in words[3:])  # the waiter of an older version tells less
    return Proof(
        token=words[1],
        boot_id=words[2],
        clock_set=told.get("clock") == "yes",
        random_reseeded=told.get("random") == "yes",
        identity=told.get("identity", "kept"),
        seconds=seconds,
    )


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{seconds}.{nanoseconds:09d}"
