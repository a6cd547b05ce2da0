"""`fedfleet-agent`: join a fleet, be the resident agent, and look at what it does. Composition root of the agent.

Exit codes: 0 done; 1 something needs a person, and the text says what; 2 the command line or the configuration is
wrong; 3 this device has not joined; 4 the hub cannot be reached, try again; 5 no agent is running here.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedfleet_agent import __version__, commands
from fedfleet_agent.errors import AgentError, ConfigError, HubUnreachable, NotEnrolled
from fedfleet_agent.home import DEFAULT
from fedfleet_protocol.errors import ProtocolError


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.act(options))
    except (AgentError, ProtocolError) as error:
        print(f"fedfleet-agent: {error}", file=sys.stderr)
        return _code(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def _code(error: Exception) -> int:
    for kind, code in ((ConfigError, 2), (NotEnrolled, 3), (HubUnreachable, 4)):
        if isinstance(error, kind):
            return code
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedfleet-agent", description="Lend this device to a fleet.", epilog=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--version", action="version", version=f"fedfleet-agent {__version__}")
    actions = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    join = _command(actions, "join", commands.join, "make this device a member of a fleet")
    join.add_argument("token", nargs="?", help="join token; better from a file, for others see command lines")
    join.add_argument("--token-file", metavar="FILE", help="file with the join token; - is standard input")
    join.add_argument("--name", help="what this device calls itself, for people")

    run = _command(actions, "run", commands.run, "be the agent, until SIGTERM; SIGHUP reads the configuration again")
    run.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (default: agent.toml of the state folder)"
    )
    run.add_argument("--check", action="store_true", help="check configuration and identity, start nothing")
    run.add_argument("--trainer-socket", type=Path, metavar="PATH", help="use the trainer that listens there")

    _command(actions, "renew", commands.renew, "get the next certificate now; a running agent does it by itself")
    for name, act, text in (
        ("status", commands.status, "say what the agent on this device does"),
        ("explain", commands.explain, "say whether this device may train now, and if not why"),
        ("isolation", commands.isolation, "try what an app could reach on this device, and say it"),
    ):
        look = _command(actions, name, act, text)
        look.add_argument("--json", action="store_true", help="for programs")
        look.add_argument("--config", type=Path, metavar="FILE", help="as for run")
    _command(actions, "pause", commands.pause, "take no more work; what is being trained is given back")
    _command(actions, "resume", commands.resume, "take work again")
    return parser


def _command(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, act: commands.Act, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--state", type=Path, default=DEFAULT, metavar="DIR", help=f"state folder (default: {DEFAULT})")
    parser.set_defaults(act=act)
    return parser


if __name__ == "__main__":
    sys.exit(main())
