"""The agent's control link: MQTT 5 over TLS, one socket, no thread; a selector loop of its owner drives it.

Nothing is believed that the order key did not sign, and everything said is signed with the device's key. What comes in
is acknowledged to the broker when its receiver says so, after its journal's commit. What is said while the link is
down is dropped: the agent asks for its tasks when it is up again, and that brings everything else back.

Idle, the link sends one ping in `KEEP_ALIVE_S` seconds: 720 a day, each with its answer and an acknowledgement at most
230 bytes with TLS, TCP and IP, so 0.17 MB a day; 120 s is below the time-outs of NATs worth the name.
"""

import logging
import random
import selectors
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, get_args

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedfleet_agent.identity import Credentials
from fedfleet_protocol import messages, topics
from fedfleet_protocol.errors import Malformed, ProtocolError
from fedfleet_protocol.messages import FromAgent, Presence, ToAgent
from fedfleet_protocol.trust import HUB, MAX_ENVELOPE_BYTES, open_envelope, seal

KEEP_ALIVE_S: Final = 120
SESSION_S: Final = 7 * 86_400
WILL_DELAY_S: Final = 5
"""A reconnect within this time is no absence, for nobody hears of it."""
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 120.0
_HANDSHAKE_S: Final = 10.0
_ANSWER_S: Final = 20.0
_TICK_S: Final = 15.0
_MAX_WAITING: Final = 1000
_AT_A_TIME: Final = 64
_TO_AGENT: Final = get_args(ToAgent)
_log = logging.getLogger(__name__)

Ack = Callable[[], None]
Receiver = Callable[[ToAgent, Ack], None]


class Watcher(Protocol):
    """Who waits for sockets; `loop.Loop` is one."""

    def watch(self, fd: int, events: int, act: Callable[[int], None]) -> None:
        """Call `act` with the events a descriptor is ready for, from now on instead of what was asked before."""
        ...

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; it is about to be closed."""
        ...


def wait_s(tries: int, rng: random.Random) -> float:
    """Return how long to wait before the next try to connect: full jitter, so that a fleet does not come at once.

    Args:
        tries: in vain so far, from 0.
    """
    return rng.uniform(0.0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, 16)))


class Link:
    """The connection to the broker; `tick` keeps it up.

    Args:
        on_message: gets each order and the function that acknowledges it; call that after the journal's commit.
        on_up: called when the agent hears what is sent to it. on_down: when it no longer does.

    Attributes:
        up: whether the agent hears what is sent to it.
        trouble: why it is down, for a person; empty while it is up.
        dropped: messages that no valid signature of the hub covered, or that made no sense.
    """

    def __init__(
        self,
        credentials: Credentials,
        watcher: Watcher,
        *,
        on_message: Receiver,
        on_up: Callable[[], None] = lambda: None,
        on_down: Callable[[], None] = lambda: None,
        rng: random.Random,
    ) -> None:
        self.up = False
        self.trouble = "not connected yet"
        self.dropped = 0
        self._credentials = credentials
        self._watcher = watcher
        self._on_message, self._on_up, self._on_down = on_message, on_up, on_down
        self._rng = rng
        self._tries = 0
        self._connection = 0
        self._next_at: float | None = 0.0
        self._answer_by: float | None = None
        self._client = self._new_client()

    # --- what the owner calls ----------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Have the next `tick` connect at once, whatever the back-off says."""
        if self._client.socket() is None:
            self._next_at = 0.0

    def tick(self, now: float) -> float:
        """Do what time demands: connect, ping, give up on a peer that is silent. Return when to call again, in seconds.

        Connecting blocks for the handshake, `_HANDSHAKE_S` at most.
        """
        if self._client.socket() is not None:
            self._client.loop_misc()
            if self._answer_by is not None and now >= self._answer_by:
                self._drop("the broker does not answer")
        if self._client.socket() is None:
            if self._next_at is None:  # lost since the last tick
                self._next_at = now + wait_s(self._tries, self._rng)
                self._tries += 1
            if now < self._next_at:
                return self._next_at - now
            self._next_at = None
            self._dial(now)
        return _TICK_S if self._answer_by is None else max(0.0, min(_TICK_S, self._answer_by - now))

    def publish(self, message: FromAgent) -> bool:
        """Say something to the hub; return whether it is on its way. What is not is dropped."""
        if not self.up:
            return False
        data = self._sealed(message)
        if len(data) > MAX_ENVELOPE_BYTES:  # the broker would cut the connection, and paho would try again for ever
            _log.error("a message of %d bytes is too large for the control link", len(data))
            return False
        said = isinstance(message, Presence)
        topic = topics.presence(self._credentials.agent) if said else topics.up(self._credentials.agent)
        return self._client.publish(topic, data, qos=1, retain=said).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def renew(self, credentials: Credentials) -> None:
        """Go on with a new certificate and key, over a new connection; it is made at the next `tick`."""
        self.close(gone=False)
        self._credentials = credentials
        self._client = self._new_client()
        self._tries = 0
        self._next_at = 0.0

    def close(self, *, gone: bool = True) -> None:
        """Let go of the connection.

        Args:
            gone: say that the agent is not there; otherwise it is about to be back.
        """
        if self.up and gone:
            self.publish(Presence(online=False))
        if self._client.socket() is not None:
            self._client.disconnect()
            for _ in range(100):  # what is queued goes out, unless the socket is full
                if not self._client.want_write() or self._client.loop_write() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    break
        self._drop("closed")

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 while there is none."""
        sock: Any = self._client.socket()
        return -1 if sock is None else int(sock.fileno())

    def want_write(self) -> bool:
        """Whether something waits to be written."""
        return self._client.want_write()

    def on_readable(self) -> None:
        """Take what has come."""
        sock: Any = self._client.socket()
        while sock is not None and self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            sock = self._client.socket()
            # What TLS has decrypted already, no selector will tell of.
            if sock is None or not sock.pending():
                break

    def on_writable(self) -> None:
        """Write what waits."""
        self._client.loop_write()

    # --- one connection ----------------------------------------------------------------------------------------------

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, self._credentials.agent, protocol=mqtt.MQTTv5, manual_ack=True
        )
        client.tls_set_context(self._credentials.tls_context())
        client.connect_timeout = _HANDSHAKE_S
        client.max_queued_messages_set(_MAX_WAITING)
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        client.on_subscribe, client.on_message = self._subscribed, self._heard
        client.on_socket_open, client.on_socket_close = self._opened, self._closed
        client.on_socket_register_write, client.on_socket_unregister_write = self._writes, self._opened
        will = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        will.WillDelayInterval = WILL_DELAY_S
        gone = self._sealed(Presence(online=False))
        client.will_set(topics.presence(self._credentials.agent), gone, qos=1, retain=True, properties=will)
        return client

    def _dial(self, now: float) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S
        properties.ReceiveMaximum = _AT_A_TIME
        host, port = self._credentials.broker
        self._connection += 1
        self._answer_by = now + _ANSWER_S
        try:
            self._client.connect(host, port, KEEP_ALIVE_S, clean_start=False, properties=properties)
        except (OSError, ValueError) as error:
            self._drop(f"the broker at {host} port {port} cannot be reached: {error}")

    def _connected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.trouble = f"the broker refuses this agent: {reason}; was it revoked?"
            return  # paho closes the socket
        client.subscribe(topics.down(self._credentials.agent), qos=1)

    def _subscribed(self, client: mqtt.Client, userdata: Any, mid: Any, reasons: Any, properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._drop("the broker does not let this agent hear its orders; the operator must look at its ACL")
            return
        if self.up:
            return
        self._answer_by = None
        self._tries = 0
        self.up, self.trouble = True, ""
        self.publish(Presence(online=True))
        self._on_up()

    def _disconnected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._lost(f"the connection ended: {reason}")

    def _drop(self, why: str) -> None:
        self._lost(why)
        # paho has no public way to let go of a socket without a word; this is what it does itself on an error.
        self._client._sock_close()

    def _lost(self, why: str) -> None:
        self._answer_by = None
        was_up, self.up = self.up, False
        if time.time() >= self._credentials.expires_wall:
            self.trouble = "this agent's certificate has expired, so the broker refuses it; join again with a new token"
        elif was_up or not self.trouble.startswith("the broker refuses"):
            self.trouble = why
        if was_up:
            self._on_down()

    # --- messages ----------------------------------------------------------------------------------------------------

    def _sealed(self, message: messages.Message) -> bytes:
        body = messages.encode(message)
        return seal(self._credentials.key, body, sender=self._credentials.agent, to=HUB)

    def _heard(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        connection = self._connection

        def ack() -> None:
            # Over a later connection the same number may mean another message; the broker sends this one again.
            if connection == self._connection and client is self._client and client.socket() is not None:
                client.ack(message.mid, message.qos)

        try:
            order = self._understood(bytes(message.payload))
        except ProtocolError as error:
            self.dropped += 1
            _log.warning("dropped what came on the control link: %s", error)
            ack()
            return
        self._on_message(order, ack)

    def _understood(self, data: bytes) -> ToAgent:
        me = self._credentials
        said: Any = messages.decode(open_envelope(data, me.order_key, sender=HUB, to=me.agent))
        if not isinstance(said, _TO_AGENT):
            raise Malformed(f"a hub does not say {type(said).__name__} to an agent")
        return said  # type: ignore[no-any-return]

    # --- paho's socket in the owner's loop ---------------------------------------------------------------------------

    def _opened(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._watcher.watch(sock.fileno(), selectors.EVENT_READ, self._ready)

    def _writes(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._watcher.watch(sock.fileno(), selectors.EVENT_READ | selectors.EVENT_WRITE, self._ready)

    def _closed(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._watcher.unwatch(sock.fileno())

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self.on_readable()
        if events & selectors.EVENT_WRITE:
            self.on_writable()
