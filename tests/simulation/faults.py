"""What goes wrong in a schedule, drawn from its seed."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances and counts of one schedule.

    Attributes:
        loss, repeat: chance that a message is lost, or delivered twice.
        delay: seconds within which a message is delivered, later ones overtaking earlier ones.
        cut: chance that an upload or a question is cut off on its way.
        crash_hub, crash_agent: chance of a crash between two instructions.
        roll_back: chance that a transition is rolled back and runs again, because of another one in its batch.
        kill_runner, split_runner, cut_agent, sweep, back_up: how often each happens in a schedule.
        decline: chance that a device is not eligible.
        noisy: whether a trainer gives another result each time.
        deadline: seconds; short ones close exchanges that agents still work on.
        quorum, grace: accepted replies that are enough, 0 for all; seconds that the others have then.
        window: how many exchanges of a run are open at a time.
        keep: whether replies after the close are kept.
    """

    loss: float = 0.0
    repeat: float = 0.0
    delay: float = 0.1
    cut: float = 0.0
    crash_hub: float = 0.0
    crash_agent: float = 0.0
    roll_back: float = 0.0
    kill_runner: int = 0
    split_runner: int = 0
    cut_agent: int = 0
    sweep: int = 0
    decline: float = 0.0
    noisy: bool = False
    deadline: float = 100_000.0
    quorum: int = 0
    grace: float = 0.0
    window: int = 1
    keep: bool = False

    @property
    def late(self) -> bool:
        """Whether replies may miss the close, so that the model may differ from the undisturbed one."""
        return self.deadline < 10_000 or self.decline > 0 or self.quorum > 0


def draw(rng: random.Random) -> Faults:
    """Return the faults of one schedule: each kind is in about half of them."""

    def maybe(value: float) -> float:
        return rng.random() * value if rng.random() < 0.5 else 0.0

    def some(most: int) -> int:
        return rng.randint(1, most) if rng.random() < 0.5 else 0

    return Faults(
        loss=maybe(0.4),
        repeat=maybe(0.3),
        delay=rng.choice((0.05, 1.0, 20.0)),
        cut=maybe(0.5),
        crash_hub=maybe(0.02),
        crash_agent=maybe(0.05),
        kill_runner=some(3),
        split_runner=some(2),
        cut_agent=some(3),
        sweep=some(4),
        decline=maybe(0.2) if rng.random() < 0.4 else 0.0,
        noisy=rng.random() < 0.3,
        deadline=rng.choice((100_000.0, 100_000.0, 100_000.0, 30.0, 300.0)),
        quorum=rng.choice((0, 0, 0, 1, 2)),
        grace=rng.choice((0.0, 5.0, 60.0)),
        window=rng.choice((1, 1, 2, 3)),
        keep=rng.random() < 0.3,
        roll_back=maybe(0.2),
    )
