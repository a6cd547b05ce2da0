"""A report as a picture: a line for each node and part, with what was done to it, and the run's rounds above."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedfleet_testfleet.errors import BadInput
from fedfleet_testfleet.fault import Action, parse
from fedfleet_testfleet.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart by colour-blind readers, and in print.
_COLOURS = {
    Action.STOP: "#d55e00", Action.CUT: "#0072b2", Action.SLOW: "#e69f00", Action.API_DOWN: "#cc79a7",
    Action.KILL: "#000000",
}  # fmt: skip
_RUN, _AWAY = "#56b4e9", "#999999"
_ENDS = {Action.START: (Action.STOP,), Action.HEAL: (Action.CUT, Action.SLOW), Action.API_UP: (Action.API_DOWN,)}
_API = "Kubernetes API"
_LINE = "the run"


def draw(report: Report, output: Path) -> None:
    """Write the timeline of a report into the file `output`, a PNG.

    Raises:
        BadInput: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise BadInput("a picture needs matplotlib; install it with: pip install 'fedfleet-testfleet[plot]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    hurt = dict.fromkeys(target for target, *_ in spans(report) if target not in report.nodes)
    lines = [_LINE, *hurt, *report.nodes]
    figure = plt.figure(figsize=(11, 1.6 + 0.3 * len(lines)), layout="constrained")
    try:
        axes = figure.add_subplot()
        _draw(axes, report, lines)
        figure.suptitle(f"{report.name}   {report.driver}   {'good' if report.good else 'NOT GOOD'}", fontsize=11)
        try:
            figure.savefig(output, dpi=130, format="png")
        except OSError as error:
            raise BadInput(f"{output} cannot be written: {error.strerror}; choose another with --png") from error
    finally:
        plt.close(figure)


def spans(report: Report) -> Iterator[tuple[str, Action, float, float]]:
    """Yield what was done to whom, from when to when, in seconds since the report began; a kill takes no time."""
    open_: dict[tuple[str, Action], float] = {}
    for one in report.observations:
        if one.kind != "fault":
            continue
        action, at, target = parse(one.fault).action, one.at - report.began, one.target or _API
        if action is Action.KILL:
            yield target, action, at, at
        for ended in _ENDS.get(action, ()):
            if (target, ended) in open_:
                yield target, ended, open_.pop((target, ended)), at
        if action in _COLOURS and action is not Action.KILL:
            open_.setdefault((target, action), at)
    for (target, action), at in open_.items():
        yield target, action, at, report.seconds


def _draw(axes: "Axes", report: Report, lines: list[str]) -> None:
    for target, action, begin, end in spans(report):
        place = lines.index(target)
        if action is Action.KILL:
            axes.plot(
                [begin], [place], marker="X", color=_COLOURS[action], markersize=8, linestyle="none", label=action
            )
        else:
            axes.barh(place, max(end - begin, 0.05), left=begin, color=_COLOURS[action], height=0.6, label=action)
    away: float | None = None
    for one in report.observations:
        at = one.at - report.began
        if one.kind == "round":
            axes.plot([at, at], [-0.4, 0.4], color=_RUN, linewidth=1.5)
            axes.annotate(str(one.round), (at, -0.45), fontsize=7, ha="center", va="bottom")
        elif one.kind == "away":
            away = at
        elif one.kind == "back" and away is not None:
            axes.barh(0, max(at - away, 0.05), left=away, color=_AWAY, height=0.35, label="coordinator away")
            away = None
    for run in report.runs:
        begin = next(one.at for one in report.observations if one.kind == "run" and one.run == run.run) - report.began
        axes.plot([begin, begin + run.seconds], [0, 0], color=_RUN, linewidth=1)
        axes.annotate(
            run.state, (begin + run.seconds, 0), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center"
        )
    axes.set_yticks(range(len(lines)), labels=lines, fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.9)
    axes.set_xlim(0, max(report.seconds, 1.0) * 1.08)
    axes.set_xlabel("seconds; the numbers are the run's rounds")
    handles, labels = axes.get_legend_handles_labels()
    told = dict(zip(labels, handles, strict=True))
    if told:
        axes.legend(told.values(), told.keys(), fontsize=8, ncols=len(told), loc="lower right", frameon=False)
