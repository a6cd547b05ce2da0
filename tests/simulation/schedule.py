"""One schedule: a fleet, its runs, the faults of a seed, and what must hold at the end."""

import random
from dataclasses import dataclass

from fedfleet_coordinator.rows import Blob, Exchange, Ref, Run
from fedfleet_protocol.exchange import ExchangeState
from fedfleet_protocol.ids import agent_id, run_id
from tests.simulation.app import INITIAL, Launcher
from tests.simulation.device import Device
from tests.simulation.faults import Faults, draw
from tests.simulation.hub import Hub, live
from tests.simulation.timeline import Timeline
from tests.simulation.work import fold

FAULTS_END_S = 300.0
FAULTY_S = 3_000.0
LIMIT_S = 2_000_000.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule came to."""

    models: tuple[str, ...]
    events_s: float


def play(seed: int, *, faults: Faults | None = None, agents: int = 3, runs: int = 2, rounds: int = 4) -> Outcome:
    """Play the schedule of `seed`.

    Raises:
        AssertionError: an invariant does not hold.
    """
    rng = random.Random(seed)
    faults = draw(rng) if faults is None else faults
    timeline = Timeline()
    hub = Hub(timeline, rng, faults)
    for number in range(agents):
        agent = agent_id(bytes([number]) * 16)
        hub.enrol(agent)
        hub.devices[agent] = Device(agent, hub, timeline, rng, faults)
    launchers = [_submit(hub, timeline, rng, faults, number, rounds) for number in range(runs)]
    hub.calm = False
    _plan(hub, timeline, rng, faults, launchers)
    ids = [launcher.run for launcher in launchers]
    timeline.after(FAULTY_S, lambda: _calm(hub, launchers))
    ended = timeline.run(lambda: timeline.now > FAULTS_END_S and not any(live(hub, run) for run in ids), LIMIT_S)
    assert ended, f"not every run ended: {_states(hub, ids)}"
    _calm(hub, launchers)
    drained = timeline.run(lambda: not hub.down and all(d.idle for d in hub.devices.values()), timeline.now + 10_000)
    assert drained, f"devices still hold something: {[(d.entry, d.lineages) for d in hub.devices.values()]}"
    return _judge(hub, faults, ids, rounds)


def _submit(hub: Hub, timeline: Timeline, rng: random.Random, faults: Faults, number: int, rounds: int) -> Launcher:
    from fedfleet_coordinator.runs import submit

    run = run_id(bytes([100 + number]) * 16)
    with hub.store.transaction() as tx:
        bundle = hub.put_blob(tx, b"bundle %d" % number, hub.now())
    hub.do(lambda tx, now, out: submit(tx, Run(run=run, bundle=bundle, bundle_size=8), now, out))
    launcher = Launcher(hub, timeline, rng, faults, run, rounds)
    timeline.after(0.0, launcher.launch)
    return launcher


def _plan(hub: Hub, timeline: Timeline, rng: random.Random, faults: Faults, launchers: list[Launcher]) -> None:
    def at_some_time(act) -> None:  # type: ignore[no-untyped-def]
        timeline.after(rng.uniform(0, 200), act)

    for launcher in launchers:
        for _ in range(faults.kill_runner):
            at_some_time(launcher.kill)
        for _ in range(faults.split_runner):
            at_some_time(lambda one=launcher: None if hub.down else one.launch())
    for _ in range(faults.cut_agent):
        device = rng.choice(list(hub.devices.values()))
        at_some_time(lambda one=device: one.cut(rng.uniform(1, 100)))
    for _ in range(faults.sweep):
        at_some_time(hub.sweep)


def _calm(hub: Hub, launchers: list[Launcher]) -> None:
    """From here nothing fails any more: whatever was broken must end and drain."""
    hub.calm = True
    for device in hub.devices.values():
        device.calm = True
    for launcher in launchers:
        launcher.launch_if_none()


def _states(hub: Hub, ids: list) -> list:  # type: ignore[type-arg]
    with hub.store.transaction() as tx:
        return [(tx.get(Run, run), tx.find(Exchange, run=run)) for run in ids]


def _judge(hub: Hub, faults: Faults, ids: list, rounds: int) -> Outcome:  # type: ignore[type-arg]
    models = []
    with hub.store.transaction() as tx:
        for run in ids:
            row = tx.get(Run, run)
            assert row is not None and row.state == "finished", f"{run} ended {row}"
            assert row.model is not None
            assert hub.watch.files[row.model] == _refold(hub, run, rounds), (
                "the model is not the fold of what was accepted"
            )
            assert all(e.state is ExchangeState.CLOSED for e in tx.find(Exchange, run=run))
            models.append(hub.watch.files[row.model].decode())
    for device in hub.devices.values():
        for (run, n), digest in device.told.items():
            assert hub.watch.accepted.get((run, n, device.agent)) == digest, "told accepted, but it was not"
    hub.sweep()
    with hub.store.transaction() as tx:
        held = {ref.holder.split(":")[0] for ref in tx.find(Ref)}
        assert held <= {"bundle", "model"}, f"still held at the end: {held}"
        left = {blob.digest for blob in tx.find(Blob)} - {ref.digest for ref in tx.find(Ref)}
        assert not left, f"blobs that nothing names: {left}"
    return Outcome(tuple(models), hub.now().wall)


def _refold(hub: Hub, run, rounds: int) -> bytes:  # type: ignore[no-untyped-def]
    model = INITIAL
    for n in range(1, rounds + 1):
        _, agents = hub.watch.closed[run, n]
        model = fold(model, [hub.watch.files[hub.watch.accepted[run, n, agent]] for agent in sorted(agents)])
    return model
