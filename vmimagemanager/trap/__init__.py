"""The dependency trap: what is new in a guest, and whether somebody accepted it.  Pure: it asks no guest."""

from vmimagemanager.trap.baseline import Baseline
from vmimagemanager.trap.verdict import Change, Verdict, compare

__all__ = ["Baseline", "Change", "Verdict", "compare"]
