"""The host's health: what works here, what does not, and the command that mends it."""

from vmimagemanager.doctor.check import Check, Status
from vmimagemanager.doctor.examination import examine

__all__ = ["Check", "Status", "examine"]
