"""What can be wrong between fedfleet's bytes and a Flower app.

BridgeError
├── BadBundle         the publisher's fault: not a Flower app, or it cannot be unpacked
│   └── AppRaised     the app's fault: importing it raised or exited
├── MissingPackages   the device's: the app needs what is not installed
├── BadConfig         the user's fault: a run configuration that the app does not have
└── Unsendable        the app's fault: a content that no other side could read
"""


class BridgeError(Exception):
    """Something between the wire and the app cannot be used; the text says what and what to do."""


class BadBundle(BridgeError):
    """The bundle is not a Flower app."""


class AppRaised(BadBundle):
    """Importing the app raised or exited."""


class MissingPackages(BridgeError):
    """The app needs packages that cannot be imported here.

    Attributes:
        names: what to install.
    """

    def __init__(self, names: tuple[str, ...], text: str) -> None:
        super().__init__(text)
        self.names = names


class BadConfig(BridgeError):
    """The run's configuration names what the app does not have, or has values Flower does not take."""


class Unsendable(BridgeError):
    """What the app put into a message or its state cannot travel."""
