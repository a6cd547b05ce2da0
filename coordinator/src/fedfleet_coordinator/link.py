"""The coordinator's MQTT 5 link, on its event loop: hints to agents go out, what agents say comes in.

What comes in is acknowledged to the broker only when the handler is done with it, that is, when it is committed: a
coordinator that dies in between is given the message again. Agents are handled side by side, so that the engine can
put a thousand of them into one commit, and each agent's messages one after the other, in the order in which it said
them: "gone" must not overtake "here".

paho's own thread is not used (its `select` hangs with a file descriptor of 1024 or more); its socket is watched by
asyncio. Connecting blocks, so a thread does it; all else happens on the loop, which alone touches the client then.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedfleet_coordinator.errors import Unavailable
from fedfleet_protocol import messages, topics
from fedfleet_protocol.errors import Forged, Malformed, ProtocolError
from fedfleet_protocol.ids import AgentId
from fedfleet_protocol.messages import FromAgent, ToAgent
from fedfleet_protocol.trust import HUB, MAX_ENVELOPE_BYTES, open_envelope, seal

Handler = Callable[[AgentId, FromAgent], Awaitable[None]]
Keys = Callable[[AgentId], Awaitable[tuple[Ed25519PublicKey, ...]]]
SESSION_S = 7 * 24 * 3600
PROBE_S = 10.0
"""What the link publishes to itself must be back within this time, or the broker is not what it should be."""
MAX_WAITING_BYTES = 64 << 20
"""Hints that wait for the link; more are dropped, oldest first: agents ask anyhow."""
MAX_UNHANDLED = 8192
"""With so many messages in hand no more are read until half of them are done."""
MAX_OF_ONE = 512
MAX_OF_ONE_BYTES = 2 << 20
"""So many messages, and bytes, of one agent wait at most; what it says beyond is let go: it asks, and says again."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
_KEEPALIVE_S = 30
_CONNECT_S = 10.0
_INFLIGHT = 65_535
_FROM_AGENT = get_args(FromAgent)
_log = logging.getLogger(__name__)


class Link:
    """The connection to the broker; keeps itself up.

    Args:
        name: of the certificate in `tls`; the broker takes it for the client id.
        keys: returns the public keys whose envelopes are an agent's; none for one that is unknown or revoked.
        handler: is awaited for each message whose envelope holds; when it returns the broker is told. What it raises
            as `Unavailable` makes it be called again a little later.
        forget: called when no known key fits, before `keys` is asked once more: an agent that just renewed its key is
            not yet known by the new one where keys are cached.

    Attributes:
        ready: set while the link is up and has proved that what is published comes back.
        trouble: why it is not, for a person; empty while it is.
        dropped: messages that were not what they claimed to be, or too many of one agent, and were let go.
        lost: hints that were not sent.
    """

    def __init__(
        self,
        *,
        name: str,
        host: str,
        port: int,
        tls: ssl.SSLContext,
        order_key: Ed25519PrivateKey,
        keys: Keys,
        handler: Handler,
        forget: Callable[[AgentId], object] = lambda agent: None,
    ) -> None:
        self._name, self._host, self._port, self._tls = name, host, port, tls
        self._order_key, self._keys, self._handler, self._forget = order_key, keys, handler, forget
        self.ready = asyncio.Event()
        self.trouble = "not connected yet"
        self.dropped = 0
        self.lost = 0
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._probe = b""
        self._connection = 0
        self._watched: Any = None
        self._paused = False
        self._waiting: deque[tuple[AgentId, bytes]] = deque()
        self._waiting_bytes = 0
        self._unhandled = 0
        self._bytes_of: Counter[AgentId] = Counter()
        self._queues: dict[AgentId, deque[tuple[mqtt.MQTTMessage, int]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._dialing: asyncio.Future[Any] | None = None
        self._client = self._new_client()

    async def start(self) -> None:
        """Begin to keep the link up; `ready` says when it is."""
        self._keeper = asyncio.create_task(self._keep(), name="link")

    async def close(self) -> None:
        """Let go of the link; the broker keeps the session, and what is not done with is given again."""
        self.ready.clear()
        tasks = [*self._tasks, *([self._keeper] if self._keeper is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._dialing is not None:  # a thread cannot be cancelled; what it opens must be closed
            await asyncio.gather(self._dialing, return_exceptions=True)
        if self._client.socket() is not None:
            self._client.disconnect()
            with contextlib.suppress(OSError):
                self._client.loop_write()
        self._hang_up()

    def publish(self, sends: list[tuple[AgentId, ToAgent]]) -> None:
        """Send hints; while the link is down they wait, and the oldest of very many are dropped."""
        for agent, message in sends:
            data = seal(self._order_key, messages.encode(message), sender=HUB, to=agent)
            if len(data) > MAX_ENVELOPE_BYTES:  # the broker would cut the link, and paho would try again for ever
                self.lost += 1
                _log.error("a message is too large for the control link", extra={"agent": agent, "bytes": len(data)})
            elif self.ready.is_set():
                self._send(agent, data)
            else:
                self._wait(agent, data)

    # --- going out ---------------------------------------------------------------------------------------------------

    def _send(self, agent: AgentId, data: bytes) -> None:
        info = self._client.publish(topics.down(agent), data, qos=1)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self._wait(agent, data)

    def _wait(self, agent: AgentId, data: bytes) -> None:
        self._waiting.append((agent, data))
        self._waiting_bytes += len(data)
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft()[1])
            self.lost += 1

    def _send_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            agent, data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._send(agent, data)

    # --- keeping it up -----------------------------------------------------------------------------------------------

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, self._name, protocol=mqtt.MQTTv5, manual_ack=True)
        client.tls_set_context(self._tls)
        client.connect_timeout = _CONNECT_S
        client.max_inflight_messages_set(_INFLIGHT)  # the broker's receive maximum lowers it
        client.max_queued_messages_set(60_000)  # packet ids are 16 bits
        client.on_connect, client.on_message = self._connected, self._heard
        client.on_disconnect = self._disconnected
        client.on_socket_register_write = self._writes
        client.on_socket_unregister_write = self._written
        client.on_socket_close = self._closed
        return client

    async def _keep(self) -> None:
        tries = 0
        while True:
            self._gone.clear()
            try:
                await self._dial()
                if await self._proved():
                    tries = 0
                    await self._idle()
            except (OSError, ValueError) as error:
                self.trouble = f"the broker at {self._host} port {self._port} cannot be reached: {error}"
            was_ready = self.ready.is_set()
            self.ready.clear()
            self._hang_up()
            _log.log(logging.WARNING if was_ready or tries == 0 else logging.INFO, "the link is down: %s", self.trouble)
            await asyncio.sleep(wait_s(tries, random.random()))
            tries += 1

    async def _dial(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S
        properties.ReceiveMaximum = _INFLIGHT
        self._connection += 1
        connect = asyncio.to_thread(
            self._client.connect, self._host, self._port, _KEEPALIVE_S, clean_start=False, properties=properties
        )
        self._dialing = asyncio.ensure_future(connect)
        await asyncio.shield(self._dialing)
        self._watched = self._client.socket()
        if self._watched is None:
            raise ConnectionError("the broker closed the connection")
        self._loop.add_reader(self._watched, self._read)
        if self._client.want_write():
            self._loop.add_writer(self._watched, self._write)

    async def _proved(self) -> bool:
        """Return whether what the link publishes to itself came back: a SUBACK does not show what an ACL forbids."""
        ready, gone = asyncio.create_task(self.ready.wait()), asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait((ready, gone), timeout=PROBE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            gone.cancel()
        if self._gone.is_set():
            return False
        if not self.ready.is_set():
            self.trouble = "the broker does not give back what is published: its ACL is not the one we wrote"
        return self.ready.is_set()

    async def _idle(self) -> None:
        while not self._gone.is_set():
            self._client.loop_misc()
            if self._waiting:
                self._send_waiting()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), 1.0)

    def _connected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.trouble = f"the broker refuses the coordinator: {reason}"
            return  # paho closes the socket
        client.subscribe([(topics.ALL_UP, 1), (topics.ALL_PRESENCE, 1), (topics.PROBE, 1)])
        self._probe = secrets.token_bytes(16)
        client.publish(topics.PROBE, self._probe, qos=1)

    def _disconnected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self.ready.is_set() or not self.trouble.startswith("the broker refuses"):
            self.trouble = f"the connection to the broker ended: {reason}"
        self._gone.set()

    def _hang_up(self) -> None:
        # paho has no public way to let go of a socket without a word; this is what it does itself on an error.
        self._client._sock_close()
        self._unwatch()

    # --- coming in ---------------------------------------------------------------------------------------------------

    def _heard(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        try:
            if message.topic == topics.PROBE:
                client.ack(message.mid, message.qos)
                self._came_back(bytes(message.payload))
                return
            agent = topics.speaker(message.topic)
        except (ProtocolError, UnicodeDecodeError) as error:
            self._let_go(message, error)
            client.ack(message.mid, message.qos)
            return
        queue = self._queues.get(agent)
        much = self._bytes_of[agent] + len(message.payload) > MAX_OF_ONE_BYTES
        if queue is not None and (len(queue) >= MAX_OF_ONE or much):
            if not self.dropped % MAX_OF_ONE:  # a flood must not fill the log, too
                _log.warning("let go of what %s said: %d of its messages wait already", agent, len(queue))
            self.dropped += 1
            client.ack(message.mid, message.qos)
            return
        self._unhandled += 1
        self._bytes_of[agent] += len(message.payload)
        if self._unhandled >= MAX_UNHANDLED and not self._paused and self._watched is not None:
            self._paused = True
            self._loop.remove_reader(self._watched)
        if queue is not None:
            queue.append((message, self._connection))
            return
        self._queues[agent] = deque([(message, self._connection)])
        task = self._loop.create_task(self._take_all(agent))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _came_back(self, probe: bytes) -> None:
        if probe == self._probe and not self.ready.is_set():  # and not one that an earlier connection left behind
            self.trouble = ""
            self.ready.set()
            self._send_waiting()

    async def _take_all(self, agent: AgentId) -> None:
        queue = self._queues[agent]
        try:
            while queue:
                message, connection = queue.popleft()
                try:
                    await self._take(agent, message)
                finally:
                    self._unhandled -= 1
                    self._bytes_of[agent] -= len(message.payload)
                # Over a later connection the same number may mean another message; this one is given again.
                if connection == self._connection and self._client.socket() is not None:
                    self._client.ack(message.mid, message.qos)
                if self._paused and self._unhandled < MAX_UNHANDLED // 2:
                    self._resume()
        finally:
            self._unhandled -= len(queue)
            del self._queues[agent], self._bytes_of[agent]

    async def _take(self, agent: AgentId, message: mqtt.MQTTMessage) -> None:
        tries = 0
        while True:
            try:
                said = await self._opened(agent, bytes(message.payload))
                await self._handler(agent, said)
            except ProtocolError as error:
                self._let_go(message, error)
            except Unavailable as error:  # nothing was written; the agent waits for a verdict, so try again
                _log.warning("what %s said has to wait: %s", agent, error)
                await asyncio.sleep(wait_s(tries, random.random()))
                tries += 1
                continue
            except Exception:  # a bug: this message must not stop those after it; the agent asks and replies again
                self.dropped += 1
                _log.exception("a message could not be handled", extra={"agent": agent})
            return

    async def _opened(self, agent: AgentId, data: bytes) -> FromAgent:
        try:
            return _understood(agent, data, await self._keys(agent))
        except Forged:
            self._forget(agent)
            return _understood(agent, data, await self._keys(agent))

    def _let_go(self, message: mqtt.MQTTMessage, error: Exception) -> None:
        self.dropped += 1
        _log.warning("let go of a message on %r: %s", message._topic[:80], error)

    # --- paho's socket on our loop -----------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._read_all()
        except Exception:  # paho would handle the same packet for ever; after a reconnect it is given again
            _log.exception("a packet from the broker could not be handled")
            self._gone.set()
            self._hang_up()

    def _read_all(self) -> None:
        sock: Any = self._client.socket()
        while sock is not None and self._client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            sock = self._client.socket()
            # What TLS has decrypted already, no selector will tell of.
            if sock is None or self._paused or not sock.pending():
                break

    def _write(self) -> None:
        self._client.loop_write()

    def _resume(self) -> None:
        self._paused = False
        if self._watched is not None:
            self._loop.add_reader(self._watched, self._read)
            self._read()

    def _writes(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        # While a thread connects, nothing is watched; `_dial` looks at what is to be written when it is done.
        if sock is self._watched:
            self._loop.add_writer(sock, self._write)

    def _written(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock is self._watched:
            self._loop.remove_writer(sock)

    def _closed(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock is self._watched:
            self._unwatch()
            self._gone.set()

    def _unwatch(self) -> None:
        sock, self._watched = self._watched, None
        self._paused = False
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)


def _understood(agent: AgentId, data: bytes, keys: tuple[Ed25519PublicKey, ...]) -> FromAgent:
    """Return what an agent said. Raises `ProtocolError` if it did not say this."""
    failure: ProtocolError = Forged(f"{agent} is no agent here, or was revoked")
    for key in keys:
        try:
            said: Any = messages.decode(open_envelope(data, key, sender=agent, to=HUB))
        except Forged as error:
            failure = error
            continue
        if not isinstance(said, _FROM_AGENT):
            raise Malformed(f"an agent does not say {type(said).__name__} here")
        return said  # type: ignore[no-any-return]
    raise failure


def wait_s(tries: int, chance: float) -> float:
    """Return how long to wait after `tries` vain tries; `chance` in [0, 1) spreads it over its upper half."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, 16)) * (0.5 + chance / 2))
