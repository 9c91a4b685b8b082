"""Table and figure of a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqseg.files import new_file
from vqseg.simulation.summary import REFERENCE

__all__ = ["CURVES_FILE", "TABLE_FILE", "draw_curves", "table", "wins_table", "write_report"]

TABLE_FILE = "table.md"
CURVES_FILE = "curves.png"
_COLUMNS = (
    "arm",
    "area under Dice",
    f"minus {REFERENCE} (95 %, Holm)",
    "beats",
    "rank",
    "last Dice",
    "area under HD95",
    "slices",
    "foreground",
    "FG-Eff",
    "agreement: start, all",
    "choose, look (s)",
)


def write_report(summary: Mapping[str, Any], folder: Path) -> None:
    """Write `table.md` and `curves.png`."""
    with new_file(folder / TABLE_FILE) as temporary:
        lines = [*table(summary), "", *wins_table(summary)]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw_curves(summary, folder / CURVES_FILE)


def table(summary: Mapping[str, Any]) -> list[str]:
    """Lines of a markdown table, the arm with the largest area first."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for name, arm in summary["arms"].items():
        cells = (
            name,
            _spread(arm["area"]),
            _against(arm[f"against_{REFERENCE}"]),
            f"{len(arm['beats'])}",
            f"{arm['rank']:.1f}",
            _spread(arm["curve"][-1]),
            _spread(arm["hd95_area"], 2),
            f"{arm['slices'][-1]:.0f}",
            f"{arm['foreground_shares'][-1]:.1%}",
            "-" if arm["foreground_efficiency"] is None else f"{arm['foreground_efficiency']:.1f}",
            f"{_signed(arm['agreement_at_start'])}, {_signed(arm['agreement'])}",
            f"{arm['seconds']['choose']:.2f}, {arm['seconds']['look']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    told = f"{summary['seeds']} seeds; with all masks of the pool the Dice is {_spread(summary['all_masks'])}."
    if (needed := summary["smallest_difference"]) is not None:
        told += f" By so many seeds an arm is told from `{REFERENCE}` if it differs by some {needed:.4f}."
    lines += ["", told]
    drawn = {name: arm["replacement_codes"] for name, arm in summary["arms"].items() if arm["replacement_codes"]}
    if drawn:
        told = ", ".join(f"{name} {codes:.1f}" for name, codes in drawn.items())
        lines += [f"Effective number of replacement codes of QPM draws: {told}."]
    lines += [f"Seed {seed} is left out: {reason}" for seed, reason in summary["left_out"].items()]
    return lines


def wins_table(summary: Mapping[str, Any]) -> list[str]:
    """Who beats whom: a paired test over seeds of the areas, after Holm over the other arms of a line."""
    arms = summary["arms"]
    numbers = range(1, len(arms) + 1)
    lines = ["Which arm (line) has a larger area than which (column) beyond the noise over seeds:", ""]
    lines += [f"| | {' | '.join(map(str, numbers))} |", "|---" * (len(arms) + 1) + "|"]
    for number, (name, arm) in zip(numbers, arms.items(), strict=True):
        cells = ["x" if other in arm["beats"] else "" for other in arms]
        lines.append(f"| {number} {name} | {' | '.join(cells)} |")
    return lines


def draw_curves(summary: Mapping[str, Any], path: Path) -> None:
    """One small panel an arm, with the reference behind it: of twenty curves in one nobody tells any apart."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    arms, budgets = summary["arms"], summary["budgets"]
    columns = min(4, len(arms))
    rows = -(-len(arms) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3 * columns, 2.4 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for panel in axes.flat[len(arms) :]:
        panel.set_axis_off()
    for panel, (name, arm) in zip(axes.flat, arms.items(), strict=False):
        for shown, colour in ((arms.get(REFERENCE), "0.6"), (arm, "C0")):
            if shown:
                means, lows, highs = ([point[key] for point in shown["curve"]] for key in ("mean", "low", "high"))
                panel.plot(budgets, means, color=colour)
                panel.fill_between(budgets, lows, highs, color=colour, alpha=0.2, linewidth=0)
        panel.axhline(summary["all_masks"]["mean"], color="0.3", linestyle=":", linewidth=1)
        panel.set_title(name, fontsize=9)
        panel.grid(alpha=0.3)
    figure.supxlabel(f"labelled studies (grey: {REFERENCE}; dotted: all masks)")
    figure.supylabel("Dice, 95 % interval over seeds")
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)


def _spread(value: Mapping[str, float], digits: int = 4) -> str:
    return f"{value['mean']:.{digits}f} ± {value['sd']:.{digits}f}"


def _against(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return ""
    mark = "**" if comparison["better"] else ""
    return (
        f"{mark}{comparison['difference']:+.4f}{mark} ({comparison['low']:+.4f} to {comparison['high']:+.4f}, "
        f"p {comparison['p']:.2f})"
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
