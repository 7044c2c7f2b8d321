"""libvirt's errors, turned into ours by their code."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from vmimagemanager.errors import (
    ConfigError,
    DomainNotFoundError,
    GuestUnreachableError,
    HypervisorError,
    HypervisorUnreachableError,
    VmimError,
)

_UNREACHABLE = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
}
_XML = {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_XML_INVALID_SCHEMA}
_AGENT = {libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED}


def silence_libvirt() -> None:
    """Keep libvirt from printing each error to standard error before it raises."""
    # A built-in, which Python does not interrupt: ^C in a function of ours would be raised inside libvirt's bindings,
    # and come out of them as a SystemError.
    libvirt.registerErrorHandler(operator.is_, None)


@contextmanager
def translated(deed: str) -> Iterator[None]:
    """Run a block of libvirt calls; ``deed`` completes "libvirt could not …" in the error that it may raise."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise _ours(deed, error) from error


def _ours(deed: str, error: libvirt.libvirtError) -> VmimError:
    code = error.get_error_code()
    said = (error.get_error_message() or str(error)).strip().rstrip(".")
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainNotFoundError(f"libvirt could not {deed}: {said}.", hint="vmimagemanager list")
    if code in _XML and error.get_error_domain() != libvirt.VIR_FROM_TEST:
        return ConfigError(
            f"libvirt could not {deed}, because it does not accept its XML: {' '.join(said.split())}.",
            hint="Look at the box's own XML and stylesheet; 'virt-xml-validate FILE domain' tells more.",
        )
    if code in _AGENT:
        return GuestUnreachableError(f"The guest agent does not answer: {said}.", hint="vmimagemanager doctor")
    if error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE) and code in _UNREACHABLE:
        return HypervisorUnreachableError(
            f"libvirt could not {deed}, because its daemon cannot be reached: {said}.", hint="vmimagemanager doctor"
        )
    return HypervisorError(f"libvirt could not {deed}: {said}.")
