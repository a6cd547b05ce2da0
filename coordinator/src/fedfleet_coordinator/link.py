"""The coordinator's MQTT 5 link, on its event loop: hints to agents go out, what agents say comes in.

What comes in is acknowledged to the broker only when the handler is done with it, that is, when it is committed: a
coordinator that dies in between is given the message again. paho's own thread is not used (its `select` hangs with a
file descriptor of 1024 or more); its sockets are driven by asyncio.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import paho.mqtt.client as mqtt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fedfleet_protocol import messages, topics
from fedfleet_protocol.errors import Malformed, ProtocolError
from fedfleet_protocol.ids import AgentId
from fedfleet_protocol.messages import FromAgent, ToAgent
from fedfleet_protocol.trust import HUB, MAX_ENVELOPE_BYTES, open_envelope, seal

Handler = Callable[[AgentId, FromAgent], Awaitable[None]]
Keys = Callable[[AgentId], Awaitable[tuple[Ed25519PublicKey, ...]]]
SESSION_S = 7 * 24 * 3600
_KEEPALIVE_S = 30
_WAITING = 100_000
_INFLIGHT = 65535
_log = logging.getLogger(__name__)


class Link:
    """The connection to the broker; keeps itself up.

    Args:
        keys: returns the public keys whose envelopes are an agent's.
        handler: is awaited for each message whose envelope holds; when it returns the broker is told.

    Attributes:
        ready: set while the link is up and the loop-back on the probe topic has been seen.
        dropped: messages that were not what they claimed to be, and were let go.
    """

    def __init__(
        self, *, name: str, host: str, port: int, tls: ssl.SSLContext, order_key: Ed25519PrivateKey, keys: Keys,
        handler: Handler,
    ) -> None:  # fmt: skip
        self._host, self._port, self._order_key, self._keys, self._handler = host, port, order_key, keys, handler
        self._loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.dropped = 0
        self._lost = asyncio.Event()
        self._waiting: deque[tuple[AgentId, ToAgent]] = deque(maxlen=_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5, manual_ack=True)
        client.tls_set_context(tls)
        client.max_inflight_messages_set(_INFLIGHT)
        client.on_connect, client.on_message, client.on_disconnect = self._connected, self._message, self._disconnected
        client.on_socket_open, client.on_socket_close = self._socket_open, self._socket_close
        client.on_socket_register_write = self._register_write
        client.on_socket_unregister_write = self._unregister_write
        self._client = client

    async def start(self) -> None:
        """Begin to keep the link up."""
        self._keeper = asyncio.create_task(self._keep(), name="link")

    async def close(self) -> None:
        """Let go of the link; the broker keeps the session."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._client.disconnect()
        with contextlib.suppress(OSError):
            self._client.loop_write()
        self._socket_gone()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def publish(self, sends: list[tuple[AgentId, ToAgent]]) -> None:
        """Send hints; while the link is down they wait, and the oldest of very many are dropped."""
        if not self._client.is_connected():
            self._waiting.extend(sends)
            return
        for agent, message in sends:
            data = seal(self._order_key, messages.encode(message), sender=HUB, to=agent)
            if len(data) > MAX_ENVELOPE_BYTES:
                _log.error("a message is too large for the control link", extra={"agent": agent, "bytes": len(data)})
                continue
            self._client.publish(topics.down(agent), data, qos=1)

    # --- keeping it up -----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        tries = 0
        while True:
            self._lost.clear()
            try:
                await self._connect()
                tries = 0
                while not self._lost.is_set():
                    self._client.loop_misc()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._lost.wait(), 1.0)
            except (OSError, ValueError) as error:
                _log.warning("the broker cannot be reached: %s", error)
            self.ready.clear()
            await asyncio.sleep(min(10.0, 0.2 * 2**tries) * (0.5 + random.random() / 2))
            tries += 1

    async def _connect(self) -> None:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_S
        properties.ReceiveMaximum = _INFLIGHT
        await asyncio.to_thread(
            self._client.connect, self._host, self._port, _KEEPALIVE_S, clean_start=False, properties=properties
        )

    def _connected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            _log.error("the broker refuses the coordinator: %s", reason)
            self._lost.set()
            return
        client.subscribe([(topics.ALL_UP, 1), (topics.ALL_PRESENCE, 1), (topics.PROBE, 1)])
        client.publish(topics.PROBE, b"probe", qos=1)
        waiting, self._waiting = list(self._waiting), deque(maxlen=_WAITING)
        self.publish(waiting)

    def _disconnected(self, client: mqtt.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._loop.call_soon_threadsafe(self._lost.set)

    def _message(self, client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == topics.PROBE:
            client.ack(message.mid, message.qos)
            self.ready.set()
            return
        task = self._loop.create_task(self._take(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, message: mqtt.MQTTMessage) -> None:
        try:
            agent = topics.speaker(message.topic)
            said = await self._opened(agent, message.payload)
            if said is not None:
                await self._handler(agent, said)
        except ProtocolError as error:
            self.dropped += 1
            _log.warning("let go of a message on %s: %s", message.topic[:80], error)
        except Exception:  # the store is away, say: not acknowledged, so the broker gives it again at the next connect
            _log.exception("a message could not be handled", extra={"topic": message.topic[:80]})
            return
        self._client.ack(message.mid, message.qos)

    async def _opened(self, agent: AgentId, data: bytes) -> FromAgent | None:
        """Return what an agent said, or None for one that is unknown or revoked.

        Raises:
            ProtocolError: it did not say this.
        """
        keys = await self._keys(agent)
        failure: ProtocolError | None = None
        for key in keys:
            try:
                said = messages.decode(open_envelope(data, key, sender=agent, to=HUB))
            except ProtocolError as error:
                failure = error
                continue
            if not isinstance(said, FromAgent):
                raise Malformed(f"an agent does not say {type(said).__name__}")
            return said
        if failure is not None:
            raise failure
        return None

    # --- paho's sockets on our loop ----------------------------------------------------------------------------------

    def _socket_open(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        self._loop.call_soon_threadsafe(self._watch, sock)

    def _watch(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.add_reader(sock, self._read)
            if self._client.want_write():
                self._loop.add_writer(sock, self._write)

    def _socket_close(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
        self._loop.call_soon_threadsafe(self._lost.set)

    def _socket_gone(self) -> None:
        sock = self._client.socket()
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            sock.close()

    def _register_write(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        self._loop.call_soon_threadsafe(self._want_write, sock)

    def _want_write(self, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock, self._write)

    def _unregister_write(self, client: mqtt.Client, userdata: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_writer(sock)

    def _read(self) -> None:
        if self._client.loop_read() != mqtt.MQTT_ERR_SUCCESS:
            self._lost.set()

    def _write(self) -> None:
        if self._client.loop_write() != mqtt.MQTT_ERR_SUCCESS:
            self._lost.set()
