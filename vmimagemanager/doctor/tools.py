"""The programs that are called, and the user namespaces that image builds need."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vmimagemanager import process
from vmimagemanager.doctor.check import Check, as_root, failure, ok, warning
from vmimagemanager.errors import VmimError
from vmimagemanager.images import userns

# Each program with Debian's package that holds it, and what does not work without it.
_NEEDED = {"qemu-img": "qemu-utils", "prlimit": "util-linux"}
_FOR_IMAGES = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "debugfs": "e2fsprogs", "tar": "tar"}
_FOR_IMAGES_OF_USERS = {"fakeroot": "fakeroot", "newuidmap": "uidmap"}
_FOR_CONVENIENCE = {"virsh": "libvirt-clients", "ssh": "openssh-client"}


def checks() -> Iterator[Check]:
    """Say which programs are missing, what fails without them, and which packages hold them."""
    for_images = _FOR_IMAGES | ({} if os.geteuid() == 0 else _FOR_IMAGES_OF_USERS)
    wanted = _NEEDED | for_images | _FOR_CONVENIENCE
    missing = {program: package for program, package in wanted.items() if process.find(program) is None}
    if not missing:
        yield ok("tools", f"All programs are installed: {', '.join(wanted)}.")
        return
    hint = as_root(f"apt-get install {' '.join(dict.fromkeys(missing.values()))}")
    for programs, consequence, verdict in (
        (_NEEDED, "no box can be made", failure),
        (for_images, "images cannot be built", warning),
        (_FOR_CONVENIENCE, "the verbs 'console' and 'ssh' need them", warning),
    ):
        absent = [f"{program} (package {missing[program]})" for program in programs if program in missing]
        if absent:
            yield verdict("tools", f"Not installed: {', '.join(absent)}; {consequence}.", hint)


def namespace_checks() -> Iterator[Check]:
    """Say whether images can be built in the namespaces that mmdebstrap uses."""
    try:
        userns.require()
    except VmimError as error:
        yield warning("user namespaces", error.message, as_root(error.hint.removeprefix("As root: ")))
        return
    yield ok("user namespaces", "The namespaces that image builds use are allowed.")
