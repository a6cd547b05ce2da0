"""A run as a picture: its metrics per round above, what each agent did when below."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedfleet_coordinator.cli.errors import BadInput
from fedfleet_coordinator.cli.view import labels_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]
Points = list[tuple[int, float]]

FORMATS = (".png", ".svg", ".pdf")
MAX_AGENTS = 60
# Okabe and Ito's palette: told apart by colour-blind readers, and in print.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_STATES = {
    "accepted": "#009e73", "published": "#56b4e9", "waiting": "#dddddd", "declined": "#e69f00", "missed": "#d55e00",
    "left out": "#cc79a7", "failed": "#000000",
}  # fmt: skip
_PALE = 0.55
_QUIET = ("num-examples",)


def draw(snapshot: Json, timeline: Json, output: Path) -> None:
    """Write the picture of a run into the file `output`.

    Raises:
        BadInput: matplotlib is not installed, or the file cannot be written.
    """
    if output.suffix not in FORMATS:
        raise BadInput(f"-o {output}: the name has to end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise BadInput(
            "fedfleet plot needs matplotlib; install it with: pip install 'fedfleet-coordinator[plot]'"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shares, others = split_series(snapshot.get("metrics", []))
    agents, spans = timeline_spans(snapshot, timeline)
    panels = [series for series in (shares, others) if series]
    height = 1.2 + 0.28 * max(len(agents), 2)
    figure = plt.figure(figsize=(11, (3.6 if panels else 0) + height), layout="constrained")
    try:
        grid = figure.add_gridspec(
            2 if panels else 1, max(len(panels), 1), height_ratios=[3.4, height] if panels else [1]
        )
        for column, series in enumerate(panels):
            _draw_metrics(figure.add_subplot(grid[0, column]), series, share=series is shares)
        _draw_timeline(figure.add_subplot(grid[-1, :]), agents, spans)
        figure.suptitle(f"{snapshot.get('app') or 'run'}   {snapshot['run']}   {snapshot['state']}", fontsize=11)
        try:
            figure.savefig(output, dpi=130)
        except OSError as error:
            raise BadInput(f"{output} cannot be written: {error.strerror}; choose another with -o") from error
    finally:
        plt.close(figure)


def split_series(metrics: list[Json]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Return the metrics that are shares from 0 to 1 by nature, and all others, as points by name."""
    series: dict[str, Points] = {}
    for entry in sorted(metrics, key=lambda entry: int(entry["round"])):
        for key, value in entry["values"].items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in _QUIET:
                series.setdefault(f"{entry['kind']} {key}", []).append((int(entry["round"]), float(value)))
    shares = {
        name: points for name, points in series.items() if "acc" in name or name.endswith(("auc", "f1", "recall"))
    }
    return shares, {name: points for name, points in series.items() if name not in shares}


def timeline_spans(snapshot: Json, timeline: Json) -> tuple[list[str], list[tuple[int, float, float, str, str]]]:
    """Return the names of the picture's lines, and spans (line, begin, length, state, label) in seconds."""
    begun = float(snapshot.get("started") or snapshot.get("created") or 0)
    ended = snapshot.get("ended")
    tasks = [task for task in timeline.get("tasks", []) if task.get("published")]
    last = float(ended or max([task.get("settled") or task["published"] for task in tasks], default=begun))
    order = sorted({task["agent"] for task in tasks})[:MAX_AGENTS]
    lines = {agent: number for number, agent in enumerate(order)}
    labels = {task["agent"]: labels_of(task.get("labels")) for task in tasks}
    spans = [
        (
            lines[task["agent"]],
            float(task["published"]) - begun,
            max(float(task.get("settled") or last) - float(task["published"]), 0.0),
            str(task["state"]),
            str(task.get("label") or ""),
        )
        for task in tasks
        if task["agent"] in lines
    ]
    return [f"{short(agent)} {labels[agent]}".strip() for agent in order], spans


def _draw_metrics(axes: "Axes", series: dict[str, Points], *, share: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    for (name, points), colour in zip(
        sorted(series.items()), _SERIES * (1 + len(series) // len(_SERIES)), strict=False
    ):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.6, color=colour, label=name)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if share:
        axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _draw_timeline(axes: "Axes", agents: list[str], spans: list[tuple[int, float, float, str, str]]) -> None:
    from matplotlib.patches import Patch

    whole = max([begin + length for _, begin, length, _, _ in spans], default=1.0)
    for line, begin, length, state, label in spans:
        # Shorter than a hair is drawn as a hair: a task that took no time still happened.
        axes.barh(
            line, max(length, whole * 0.003), left=begin, height=0.7, color=_STATES.get(state, "#999999"),
            alpha=_PALE if label.startswith("evaluate") else 1.0, edgecolor="white", linewidth=0.4,
        )  # fmt: skip
    axes.set_yticks(range(len(agents)), agents, fontsize=8, family="monospace")
    axes.set_ylim(len(agents) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds since the run began")
    axes.set_title(
        "agents: strong colours train, pale ones evaluate" if spans else "no agent was asked", fontsize=9, loc="left"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    seen = [state for state in _STATES if any(span[3] == state for span in spans)]
    axes.legend(
        handles=[Patch(color=_STATES[state], label=state) for state in seen],
        frameon=False, fontsize=8, ncols=len(seen) or 1, loc="lower right", bbox_to_anchor=(1, 1),
    )  # fmt: skip
