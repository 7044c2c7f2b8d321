"""The dependency trap: what is new in a guest, who brought it in, and whether somebody accepted it.

Pure: it asks no guest.  Two questions are kept apart.  Is it approved?  The baseline and the policy say.  Is it
explained?  What is declared, and what that depends on, says.
"""

from vmimagemanager.trap.baseline import Baseline
from vmimagemanager.trap.explain import Explanation, Reason
from vmimagemanager.trap.finding import Finding, Label, Rule, Severity
from vmimagemanager.trap.history import History, Told
from vmimagemanager.trap.policy import Policy
from vmimagemanager.trap.verdict import Change, Verdict, compare

__all__ = [
    "Baseline",
    "Change",
    "Explanation",
    "Finding",
    "History",
    "Label",
    "Policy",
    "Reason",
    "Rule",
    "Severity",
    "Told",
    "Verdict",
    "compare",
]
