"""The command `simulate`: an app on devices that do not exist, in virtual time, on this machine."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from fedfleet_coordinator.cli.errors import BadInput, LocalFault, RunFailed
from fedfleet_coordinator.cli.output import JsonOption, console, print_json, say
from fedfleet_coordinator.cli.plot import FORMATS
from fedfleet_coordinator.cli.submission import Options, pack
from fedfleet_coordinator.cli.view import ending

if TYPE_CHECKING:
    from fedfleet_coordinator.simulation.fleet import Fleet

_T = TypeVar("_T")
_FIELDS = ("app", "config", "quorum", "deadline_s", "grace_s", "late", "gate")


def simulate(
    app_dir: Annotated[
        Path, typer.Argument(metavar="APP_DIR", help="Folder of a Flower app, with its pyproject.toml.")
    ],
    agents: Annotated[int, typer.Option(min=1, max=2**32 - 2, help="How many devices there are.")] = 100,
    cohort: Annotated[
        int | None, typer.Option(min=1, help="The app sees a sample of so many at a time. Default: all.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=512, help="Processes that train. Default: one per processor.")
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "-c",
            "--config",
            metavar="KEY=VALUE",
            help="Override the app's configuration; TOML values, or one .toml file.",
        ),
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What a call takes: 30s, lognormal:30s, uniform:10s:2min. Default: nothing."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="SPEED", help="Each way: 10Mbit, lognormal:10Mbit, uniform:1Mbit:50Mbit. Default: no wait."
        ),
    ] = None,
    stragglers: Annotated[
        str | None,
        typer.Option(metavar="SHARE:FACTOR", help="0.2:5x: calls take a fifth of the devices 5 times longer."),
    ] = None,
    drop_out: Annotated[str, typer.Option(metavar="SHARE", help="The share of tasks that are never answered.")] = "0",
    quorum: Annotated[str, typer.Option(help="Replies that are enough: a number, or a share like 80%.")] = "100%",
    deadline: Annotated[float, typer.Option(help="Virtual seconds an exchange may take.")] = 3600.0,
    grace: Annotated[float, typer.Option(help="Virtual seconds to wait for others after the quorum.")] = 30.0,
    late: Annotated[str, typer.Option(help="What to do with late replies: refuse, or keep.")] = "refuse",
    gate: Annotated[
        list[str] | None, typer.Option("--gate", metavar="KEY=VALUE", help="A setting of the update gate.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed is the same fleet and the same model.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Draw the run here: .png, .svg or .pdf.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the model here, numpy's .npz.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append here what the apps print.")] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for everything. Default: in memory, or temporary.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a Flower app on devices that do not exist, in virtual time. No fleet is needed.

    Each call of the ClientApp is real, and made by as many processes as --workers; how long it takes a device, and
    whether the device answers at all, is made up. The same seed gives the same model, whatever the machine.

    For example:

      fedfleet simulate examples/quickstart --agents 1000 --cohort 50

      fedfleet simulate . --compute lognormal:30s --stragglers 0.2:5x --drop-out 0.1 --quorum 80% --save model.npz
    """
    begun = time.monotonic()
    options = Options(
        config=tuple(config or ()), quorum=quorum, deadline_s=deadline, grace_s=grace, late=late,
        gate=tuple(gate or ()), seed=seed,
    )  # fmt: skip
    _check(output, save, scratch)
    submission = pack(app_dir, options)
    fleet = _fleet(agents, cohort, seed, compute=compute, link=link, stragglers=stragglers, drop_out=drop_out)

    from fedfleet_coordinator.cli.progress import Progress, summary
    from fedfleet_coordinator.simulation.errors import NoRoom, Unusable
    from fedfleet_coordinator.simulation.session import Simulation

    run = {name: submission.request[name] for name in _FIELDS}
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        with Progress(log=log, quiet=as_json) as progress:
            with Simulation(
                submission.bundle, fleet, workers=workers or len(os.sched_getaffinity(0)), run=run, scratch=scratch,
                output=progress.output, watch=lambda simulation: progress.look(simulation.snapshot),
            ) as simulation:  # fmt: skip
                simulation.execute()
                snapshot, timeline, model = simulation.snapshot(), simulation.timeline(), simulation.model()
            progress.show(snapshot)
    except Unusable as error:
        raise BadInput(str(error)) from error
    except NoRoom as error:
        raise LocalFault(str(error)) from error
    if as_json:
        print_json(snapshot)
    else:
        console.print(summary(snapshot, real_s=time.monotonic() - begun))
    if output is not None:
        from fedfleet_coordinator.cli.plot import draw

        draw(snapshot, timeline, output)
    if save is not None and model is not None:
        from fedfleet_coordinator.cli.models import write_npz

        write_npz(model, save)
    if not as_json:
        for file, what in ((output, "picture"), (save if model is not None else None, "model")):
            if file is not None:
                say(f"the {what} is in {file}")
    if snapshot["state"] != "finished":
        raise RunFailed(ending(snapshot))
    if save is not None and model is None:
        raise RunFailed(f"the run ended without a model: nothing was written to {save}")


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, with all processes and files gone."""
    raise KeyboardInterrupt


def _fleet(
    agents: int, cohort: int | None, seed: int, *, compute: str | None, link: str | None, stragglers: str | None,
    drop_out: str,
) -> "Fleet":  # fmt: skip
    from fedfleet_coordinator.simulation import devices
    from fedfleet_coordinator.simulation.fleet import Fleet

    if cohort is not None and cohort > agents:
        raise BadInput(f"--cohort {cohort} is more than there are devices: --agents {agents}")
    conditions = devices.Conditions(
        seed=seed,
        compute=_read("--compute", devices.duration, compute) if compute else None,
        link=_read("--link", devices.link, link) if link else None,
        stragglers=_read("--stragglers", devices.stragglers, stragglers) if stragglers else (0.0, 1.0),
        drop_out=_read("--drop-out", devices.share, drop_out),
    )
    return Fleet(agents, cohort, conditions)


def _read(option: str, read: Callable[[str], _T], text: str) -> _T:
    try:
        return read(text)
    except ValueError as error:
        raise BadInput(f"{option} {error}") from error


def _check(output: Path | None, save: Path | None, scratch: Path | None) -> None:
    """Return if the files can be written when the run has ended, as far as one can tell before."""
    if output is not None and output.suffix not in FORMATS:
        raise BadInput(f"-o {output}: the name has to end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    for option, file in (("-o", output), ("--save", save)):
        if file is not None and not file.expanduser().absolute().parent.is_dir():
            raise BadInput(f"{option} {file}: there is no folder {file.parent}")
    if scratch is not None and not scratch.is_dir():
        raise BadInput(f"--scratch {scratch} is no folder")
