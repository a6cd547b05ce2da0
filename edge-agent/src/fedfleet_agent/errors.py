"""What can go wrong on a device, by whose it is to mend.

AgentError
├── ConfigError       the device owner's: the configuration, with file, line, column and remedy
├── NotEnrolled       the device owner's: this device has not joined a fleet, or not under this state folder
├── AlreadyEnrolled   the device owner's: it has joined already
├── AlreadyRunning    the device owner's: another agent works in this state folder
├── JournalError      the device's: what must not be lost cannot be written down
│   └── DiskFull      there is no room left; nothing that was accepted is lost
├── HubUnreachable    nobody's: no connection, or the hub asked to come back later
├── HubRefused        the operator's: the hub answered, and said no
│   └── GrantRefused  nobody's: the capability expired or is not for this; asking again brings a new one
└── TransferCancelled nobody's: the transfer is not wanted any more
"""


class AgentError(Exception):
    """Something on this device needs a person; the text says what, where and what to do."""


class ConfigError(AgentError):
    """The configuration cannot be used as it is."""


class NotEnrolled(AgentError):
    """This device has no identity yet."""


class AlreadyEnrolled(AgentError):
    """This device has an identity already."""


class AlreadyRunning(AgentError):
    """Another agent holds the state folder."""


class JournalError(AgentError):
    """The journal cannot be read or written."""


class DiskFull(JournalError):
    """There is no room for what must be kept; what was kept before is intact."""


class HubUnreachable(AgentError):
    """The hub cannot be reached now; trying again later may help.

    Attributes:
        retry_after_s: when the hub said to come back; 0 if it said nothing.
    """

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class HubRefused(AgentError):
    """The hub answered, and said no; trying again unchanged will not help."""


class GrantRefused(HubRefused):
    """The hub does not take the capability (any more); asking for the open tasks brings a new one."""


class TransferCancelled(AgentError):
    """The transfer is not wanted any more; what arrived is kept and the next one goes on there."""
