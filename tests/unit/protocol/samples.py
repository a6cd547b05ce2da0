"""One value of every kind that is said, with no field left at its default, so that none is forgotten."""

import hashlib

import msgspec

from fedfleet_protocol import handover, messages, records
from fedfleet_protocol.ids import Digest, Order, agent_id, run_id
from fedfleet_protocol.messages import BlobRef, Grant, Held, ReplyRef

AGENT = agent_id(bytes(range(16)))
RUN = run_id(bytes(range(16, 32)))


def digest(text: str) -> Digest:
    return Digest(hashlib.sha256(text.encode()).hexdigest())


ORDER = Order(digest("order"))
CONFIG: messages.Config = {"lr": 0.1, "epochs": 3, "name": "x", "on": True}
GRANT = Grant(BlobRef(digest("payload"), 4), path="/v1/blobs/x", capability="proof", inline=b"\x00\xff\x80\x7f")
BUNDLE = Grant(BlobRef(digest("bundle"), 1 << 20), path="/v1/blobs/y", capability="proof", blocks=bytes(range(32)))
NOTICE = messages.Notice(
    run=RUN,
    n=3,
    agent=AGENT,
    order=ORDER,
    base=digest("base"),
    payload=GRANT,
    bundle=BUNDLE,
    run_config=CONFIG,
    attempt=2,
    remaining_s=59.5,
    lease_s=30.0,
    priority=-1,
    publisher=bytes(32),
    signature=bytes(64),
)
VERDICT = messages.Verdict(order=ORDER, digest=digest("reply"), code="superseded", text="another reply was accepted")

MESSAGES: tuple[messages.Message, ...] = (
    NOTICE,
    messages.Progress(order=ORDER, run=RUN, n=3, attempt=2),
    messages.Reply(run=RUN, n=3, order=ORDER, digest=digest("reply"), size=3, attempt=2, inline=b"\x00\x01\xff"),
    messages.Decline(run=RUN, n=3, order=ORDER, code="battery", text="battery 11% < 20%"),
    messages.Need(order=ORDER, digest=digest("reply"), upload=BUNDLE, retry_after_s=2.5),
    VERDICT,
    messages.Over(run=RUN),
    messages.Ask(agent=AGENT, held=(Held(RUN, 3, ORDER, digest("reply")), Held(RUN, 4, ORDER)), runs=(RUN,)),
    messages.Answer(verdicts=(VERDICT,), open=(NOTICE,), over=(RUN,)),
    messages.Status(version="0.1.0", eligible=False, code="window", text="outside 22:00-06:00", labels={"site": "a"}),
    messages.Presence(online=True),
    messages.Log(run=RUN, n=3, lines=("loss 0.5", "…"), dropped=7),
    messages.Enrol(token="fft1.x", csr_pem="-----BEGIN", version="0.1.0"),
    messages.Renew(csr_pem="-----BEGIN"),
    messages.Identity(
        agent=AGENT,
        certificate_pem="-----BEGIN",
        services_ca_pem="-----BEGIN",
        broker="hub.example:8883",
        data_url="https://hub.example:8443",
        order_key=bytes(32),
    ),
    messages.Open(
        run=RUN,
        epoch="5e" * 16,
        n=3,
        cohort={AGENT: BlobRef(digest("payload"), 4)},
        deadline_s=60.0,
        quorum=2,
        grace_s=5.0,
        late="keep",
        label="train 2/3",
    ),
    messages.Checkpoint(
        run=RUN,
        epoch="5e" * 16,
        next_n=4,
        next_answer=5,
        keep_below=2,
        server_round=3,
        blobs={"arrays": BlobRef(digest("arrays"), 9)},
    ),
    messages.ExchangeView(
        run=RUN,
        n=3,
        closed="quorum",
        need=(digest("payload"),),
        expected=2,
        replies=(
            ReplyRef(AGENT, BlobRef(digest("reply"), 3), late=True),
            ReplyRef(AGENT, None, "battery", "battery 11% < 20%"),
        ),
    ),
)

FILE = handover.File("reply-1", digest("reply"), 3, bytes(32))
HANDOVER: tuple[handover.Frame, ...] = (
    handover.Load(
        run=RUN,
        bundle="bundle-1",
        limits=handover.Limits(1 << 30, 1 << 31, 7, 50.0, 60, 1 << 20),
        sandbox=handover.Sandbox(False, "none", ("/data",), ("/dev/nvidia0",), True, "/home/key", "/home/journal", 7),
    ),
    handover.Work(
        order=ORDER,
        message="message-1",
        state="state-1",
        run_number=(1 << 63) - 1,
        node=5,
        node_config=CONFIG,
        run_config=CONFIG,
        remaining_s=59.5,
        seed=7,
    ),
    handover.Stop(),
    handover.Loaded(warnings=("app wants torch 2.14, this device has 2.13",)),
    handover.LoadFailed(code="packages", text="torch is not installed", status=1),
    handover.Alive(cpu_s=1.5, memory_bytes=1 << 28),
    handover.Output(stream="stderr", lines=("loss 0.5", "…"), dropped=7),
    handover.Done(order=ORDER, reply=FILE, state=FILE, failed=True),
    handover.Failed(order=ORDER, code="outside", text="killed by signal 9", status=-9),
)

CONTENT = records.encode(
    (
        records.RecordValue(
            "arrays",
            "arrays",
            (
                records.ArrayValue(
                    "w", "float32", (2, 1), "numpy.ndarray", b"\x93NUMPY", memoryview(b"\0\0\x80?\0\0\0@")
                ),
                records.ArrayValue("empty", "int8", (0,), "other", b"", memoryview(b"")),
            ),
        ),
        records.RecordValue("metrics", "metrics", values={"loss": 0.5, "num-examples": 7, "per-class": [1, 2]}),
        records.RecordValue("config", "config", values={"a": True, "b": "x", "c": b"\xff", "d": ["y"]}),
    ),
    message_type="train",
    group_id="3",
)


def kind_of(said: msgspec.Struct) -> str:
    """The tag that names it on the wire."""
    return type(said).__name__.lower()
