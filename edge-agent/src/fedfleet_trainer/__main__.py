"""`python -m fedfleet_trainer --socket PATH --handover DIR`: be a trainer for the agent that connects.

`--connection FD` in place of `--socket` takes a connected socket that the agent's supervisor left open for its child.
`--alone` leaves out the outer process: whoever holds the other end of the connection watches the app itself.
"""

import argparse
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import fedfleet_sandbox
from fedfleet_trainer import processes
from fedfleet_trainer.keeper import Inner, Keeper

_MOST_DESCRIPTORS = 1 << 20


def main(arguments: list[str] | None = None) -> int:
    """Keep one app for one agent; return 0 when the agent has hung up or the app has ended."""
    parser = argparse.ArgumentParser(prog="fedfleet_trainer", description="Load a ClientApp and call it for an agent.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="Unix socket to listen on; made for its owner only")
    where.add_argument("--connection", type=int, help="descriptor of a connected socket")
    parser.add_argument("--handover", type=Path, required=True, help="folder shared with the agent")
    parser.add_argument("--alone", action="store_true", help="call the app in this very process")
    options = parser.parse_args(arguments)
    # A stopped process does not see its agent go: the kernel wakes it, and the closed connection ends it.
    processes.on_parents_death(signal.SIGCONT)
    processes.adopt_orphans()
    folder = options.handover.resolve()
    agent = accept(options.socket) if options.socket else socket.socket(fileno=options.connection)
    if options.alone:
        from fedfleet_trainer.caller import main as call

        processes.on_parents_death(signal.SIGKILL)
        call(agent, folder)
        return 0
    fedfleet_sandbox.hide_memory()
    Keeper(agent, start_inner(agent, folder), folder).run()
    return 0


def accept(path: Path) -> socket.socket:
    """Return the connection of the first agent that connects to a socket at `path`; nobody else can any more."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        # By descriptor, for a path of a socket may not be longer than 107 bytes.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mask = os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.umask(mask)
            os.close(folder)
        listener.listen(1)
        connection, _ = listener.accept()
    path.unlink(missing_ok=True)
    return connection


def start_inner(agent: socket.socket, folder: Path) -> Inner:
    """Return the inner process, which has just been forked, with its output in pipes."""
    mine, theirs = socket.socketpair()
    pipes = {name: os.pipe() for name in ("stdout", "stderr")}
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            agent.close()
            mine.close()
            _become_inner(keeper, pipes)
            os.closerange(3, theirs.fileno())
            os.closerange(theirs.fileno() + 1, _MOST_DESCRIPTORS)
            from fedfleet_trainer.caller import main as call

            call(theirs, folder)
            status = 0
        except BaseException:  # whatever an app can raise through us; its text is the last thing it prints
            traceback.print_exc()
        finally:
            os._exit(status)
    theirs.close()
    for _, write in pipes.values():
        os.close(write)
    return Inner(pid, mine, {name: read for name, (read, _) in pipes.items()})


def _become_inner(keeper: int, pipes: dict[str, tuple[int, int]]) -> None:
    processes.on_parents_death(signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)  # the keeper ended before the line above
    fedfleet_sandbox.hide_memory(False)  # its keeper measures it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for target, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(pipes[name][1], target)
    for descriptor in (nothing, *(end for pipe in pipes.values() for end in pipe)):
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
