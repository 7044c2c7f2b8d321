"""Hooks: scripts run in the guest over SSH, or on the host, at the moments of a box's life."""

from __future__ import annotations

import logging
import os
import shlex

from vmimagemanager import keys, process
from vmimagemanager.boxes.reach import access, open_session
from vmimagemanager.boxes.record import BoxRecord
from vmimagemanager.boxes.site import Site
from vmimagemanager.config import Hook, Moment, Place
from vmimagemanager.deadline import Stopwatch
from vmimagemanager.durable import translate_os_errors
from vmimagemanager.errors import DeadlineError, GuestError, HookError, StateError, ToolError, VmimError
from vmimagemanager.guest.session import Session
from vmimagemanager.hypervisor.domain import Domain

_log = logging.getLogger(__name__)
_QUOTED = 40
# A file, because what the script's first line '#!…' means is the guest's own business.
_RUN_FILE = 'f=$(mktemp) && cat > "$f" && chmod 700 "$f" && { env %s "$f"; s=$?; rm -f "$f"; exit $s; }'


def run_hooks(site: Site, record: BoxRecord, moment: Moment, domain: Domain | None) -> None:
    """Run the hooks of a moment in their order.

    Raises HookError, with the hook's output as detail and its own status, at the first that fails or takes too long.
    """
    hooks = [hook for hook in record.settings.hooks if hook.moment is moment]
    if not hooks:
        return
    environment = _environment(site, record, moment, domain)
    for hook in hooks:
        watch = Stopwatch()
        if hook.where is Place.HOST:
            _on_host(hook, environment)
        else:
            if domain is None:
                raise HookError(f"The hook {_named(hook)} cannot run: the guest of '{record.name}' is off.")
            with open_session(domain, record, site.state.box(record.name)) as session:
                _in_guest(session, hook, {name: environment[name] for name in ("VMIM_BOX", "VMIM_MOMENT")})
        _log.info("hook %s at %s of '%s' in %.2f s", _named(hook), moment, record.name, watch.total)


def script_line(environment: dict[str, str] | None = None) -> str:
    """Return the line that runs a script, given on standard input, in the guest with ``environment``."""
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in (environment or {}).items())
    return _RUN_FILE % pairs


def _environment(site: Site, record: BoxRecord, moment: Moment, domain: Domain | None) -> dict[str, str]:
    environment = {"VMIM_BOX": record.name, "VMIM_MOMENT": moment.value}
    if domain is not None and record.settings.network != "none":
        folder = site.state.box(record.name)
        reached = access(domain, record, folder)
        environment |= {
            "VMIM_SSH_HOST": reached.host,
            "VMIM_SSH_PORT": str(reached.port),
            "VMIM_SSH_USER": reached.user,
            "VMIM_SSH_KEY": str(reached.key),
            "VMIM_SSH_KNOWN_HOSTS": str(folder.keys / "known_hosts"),
            "VMIM_SSH_HOST_KEY_ALIAS": keys.host_alias(record.name),
        }
    return environment


def _on_host(hook: Hook, environment: dict[str, str]) -> None:
    argv = list(hook.command) if hook.script is None else [str(hook.script)]
    if hook.script is not None and not os.access(hook.script, os.X_OK):
        argv = ["/bin/sh", str(hook.script)]
    try:
        finished = process.run(argv, environment=environment, limit=hook.timeout, check=False)
    except DeadlineError as error:
        raise _too_slow(hook, error) from error
    except ToolError as error:
        raise _not_run(hook, error) from error
    if finished.status != 0:
        raise _failed(hook, finished.status, finished.stdout + finished.stderr)


def _in_guest(session: Session, hook: Hook, environment: dict[str, str]) -> None:
    try:
        if hook.script is None:
            pairs = [f"{name}={value}" for name, value in environment.items()]
            result = session.run(["env", *pairs, *hook.command], limit=hook.timeout)
        else:
            with translate_os_errors("read", hook.script):
                text = hook.script.read_bytes()
            result = session.shell(script_line(environment), stdin=text, limit=hook.timeout)
    except DeadlineError as error:
        raise _too_slow(hook, error) from error
    except (GuestError, StateError) as error:
        raise _not_run(hook, error) from error
    if result.status != 0:
        raise _failed(hook, result.status, result.stdout + result.stderr)


def _named(hook: Hook) -> str:
    return f"'{hook.script}'" if hook.script is not None else f"'{shlex.join(hook.command)}'"


def _failed(hook: Hook, status: int, output: bytes) -> HookError:
    lines = output.decode("utf-8", "replace").rstrip().splitlines()[-_QUOTED:]
    return HookError(
        f"The hook {_named(hook)} at '{hook.moment}' ended with status {status}.",
        detail="\n".join(lines),
        hint="--no-hooks leaves all hooks out.",
        status=status,
    )


def _not_run(hook: Hook, error: VmimError) -> HookError:
    return HookError(
        f"The hook {_named(hook)} at '{hook.moment}' could not be run to its end: {error}",
        hint=error.hint,
        detail=error.detail,
    )


def _too_slow(hook: Hook, error: DeadlineError) -> HookError:
    return HookError(
        f"The hook {_named(hook)} at '{hook.moment}' was ended after {error.seconds:.0f} s, its time limit.",
        hint="'timeout' in the hook's table gives it longer.",
    )
