"""The plot of time against touched memory, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

COLOURS = ("#0b5394", "#cc4125", "#38761d")


def draw(series: Mapping[str, Sequence[tuple[int, Sequence[float]]]], target: Path) -> None:
    """Draw each series, (MiB touched, seconds of each run), its median and span, into ``target``.png and .svg."""
    mpl.rcParams["svg.hashsalt"] = "vmimagemanager"
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        at = [mebibytes / 1024 for mebibytes, _ in points]
        medians = [sorted(seconds)[len(seconds) // 2] for _, seconds in points]
        axes.fill_between(
            at, [min(one) for _, one in points], [max(one) for _, one in points], color=colour, alpha=0.15, linewidth=0
        )
        axes.plot(at, medians, marker="o", color=colour, label=name)
    axes.set_xlabel("memory that the guest has touched (GiB)")
    axes.set_ylabel("seconds until a command has run in the guest")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for kind in ("png", "svg"):
        figure.savefig(target.with_suffix(f".{kind}"), dpi=150, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
