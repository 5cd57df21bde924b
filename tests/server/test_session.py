"""Claims about one connection, and about what it can do to others. The clock jumps; no test waits for real time."""

import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from logd.server import session as session_module
from logd.server.outbox import UNSENT_BYTES_MAX
from tests.server.conftest import ADA, CLUSTER_ID, LIMITS, Server
from tests.server.streams import Client, MemoryStream
from tests.support.fake_cluster import NODE, batch_of
from wire.codec import encode
from wire.connection import Answered, ClientEvent, Delivered, Refused
from wire.errors import (
    CorruptBatch,
    InvalidRequest,
    InvalidTopic,
    LogdError,
    NotAuthorized,
    OffsetOutOfRange,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    ShuttingDown,
    TopicNotFound,
    Unsupported,
)
from wire.frame import GREETING_FRAME_BYTES_MAX, frame
from wire.messages import (
    CreateTopic,
    DeleteTopic,
    DescribeTopic,
    Fetch,
    Fetched,
    Hello,
    InitProducer,
    ListedOffsets,
    ListOffsets,
    Metadata,
    Ping,
    Pong,
    Produce,
    Produced,
    ProducerInitialized,
    ReportDamage,
    Subscribe,
    Subscribed,
    TopicCreated,
    TopicDeleted,
    Unsubscribed,
)
from wire.types import PROTOCOL_VERSION, Acks, Anchor

BATCH = batch_of()
PRODUCE = Produce("orders", 0, Acks.QUORUM, BATCH)


def fetch(offset: int = 0, max_bytes: int = 1 << 20, max_wait_ms: int = 0) -> Fetch:
    return Fetch("orders", 0, offset, max_bytes, max_wait_ms)


def raw(*values: object) -> bytes:
    """A frame of these values, whatever they are."""
    return frame(msgpack.packb(list(values)))


# --- Greeting ---------------------------------------------------------------------------------------------------------


async def test_a_client_is_told_who_answers_and_within_which_limits(server: Server) -> None:
    async with server.connected() as client:
        welcomed = await client.greet()
        assert (welcomed.welcome.node, welcomed.welcome.cluster_id) == (NODE, CLUSTER_ID)
        assert welcomed.limits == LIMITS
        assert await client.ask(Ping()) == Pong()
    assert server.lines == []


@pytest.mark.parametrize("sent", [b"", b"\x00\x00", encode(Hello((1,), "test"), 0)[:-1]])
async def test_a_client_that_does_not_greet_in_time_is_closed(
    server: Server, autojump_clock: MockClock, sent: bytes
) -> None:
    async with server.connected() as client:
        client.stream.client_send(sent)
        before = trio.current_time()
        error = await client.farewell()
        assert isinstance(error, ProtocolError)
        assert trio.current_time() - before == pytest.approx(10.0)
    assert server.lines == [f'too_slow principal={ADA} problem="no greeting within 10 s"']


async def test_bytes_that_trickle_do_not_prolong_the_greeting(server: Server, autojump_clock: MockClock) -> None:
    async with server.connected() as client:
        before = trio.current_time()
        for byte in encode(Hello((1,), "x" * 100), 0)[:-1]:
            client.stream.client_send(bytes((byte,)))
            await trio.sleep(0.2)
        assert isinstance(await client.farewell(), ProtocolError)
        assert trio.current_time() - before < 30
    assert len(server.lines) == 1


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "a frame of 1195725856 bytes"),
        (struct.pack(">I", GREETING_FRAME_BYTES_MAX + 1), "a frame of 4097 bytes"),
        (struct.pack(">I", 0), "a frame of 0 bytes"),
        (frame(b"\xc1\xc1\xc1\xc1"), "not msgpack"),
        (frame(b"\x01\x02\x03\x04"), "not msgpack"),
        (frame(msgpack.packb({"type": 1})), "not an array"),
        (raw(1, 70_000), "not an array"),
        (raw("1", 0, None), "unsigned integers"),
        (raw(1, -1, None), "unsigned integers"),
        (raw(1, 0, 7), "neither nil nor a map"),
        (raw(1, 0, None), "Hello.versions"),
        (raw(1, 0, None, "x", "y"), "Hello.versions"),
        (raw(1, 5, None, [1], "x"), "Hello has request id 0"),
        (raw(3, 1, None), "Ping before the greeting"),
        (raw(99, 1, None), "type 99"),
        (raw(1, 0, None, [2, 3], "x"), r"none of the versions [2, 3] is spoken here"),
        (raw(1, 0, None, [], "x"), "none of the versions"),
    ],
)
async def test_what_is_no_greeting_ends_the_connection_with_a_reason(server: Server, sent: bytes, problem: str) -> None:
    async with server.connected() as client:
        client.stream.client_send(sent)
        error = await client.farewell()
        assert isinstance(error, ProtocolError)
        assert problem in str(error)
    (line,) = server.lines
    assert line.startswith(f"protocol_error principal={ADA}")


async def test_a_version_among_others_is_enough(server: Server) -> None:
    async with server.connected() as client:
        client.connection.hello("test")
        client.stream.client_send(raw(1, 0, None, [99, PROTOCOL_VERSION], "test", ["unknown"], "from the future"))
        await client.event()
        assert await client.ask(Ping()) == Pong()


async def test_a_client_that_leaves_at_once_is_no_news(server: Server) -> None:
    async with server.connected() as client:
        client.stream.client_close()
        await client.end()
    async with server.greeted() as client:
        client.stream.client_close()
        await client.end()
    assert server.lines == []


# --- Requests ---------------------------------------------------------------------------------------------------------


async def test_every_request_has_its_answer(server: Server) -> None:
    async with server.greeted() as client:
        assert await client.ask(CreateTopic("audit", 1)) == TopicCreated(bytes(16), 1)
        assert await client.ask(InitProducer()) == ProducerInitialized(1, 0)
        produced = await client.ask(PRODUCE)
        assert isinstance(produced, Produced)
        assert await client.ask(fetch()) == Fetched(server.partition.batches[0].to_bytes(), 1, 0, 1)
        assert await client.ask(ListOffsets("orders", 0, Anchor.END)) == ListedOffsets(1, 0, 1)
        assert await client.ask(DeleteTopic("audit")) == TopicDeleted()
        for message in (Metadata(), DescribeTopic("orders"), ReportDamage("orders", 0, 0, 1, "")):
            await client.ask(message)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Produce("audit", 0, Acks.QUORUM, BATCH), TopicNotFound),
        (Produce("orders", 0, Acks.QUORUM, BATCH[:-1] + b"y"), CorruptBatch),
        (fetch(7), OffsetOutOfRange),
        (Subscribe("orders", 0, 7, 1), OffsetOutOfRange),
        (CreateTopic("/"), InvalidTopic),
        (DescribeTopic("audit"), TopicNotFound),
        (Metadata(("audit",)), TopicNotFound),
    ],
)
async def test_a_refusal_is_typed_and_the_connection_lives(
    server: Server, message: Any, error: type[LogdError]
) -> None:
    async with server.greeted() as client:
        with pytest.raises(error):
            await client.ask(message)
        assert await client.ask(Ping()) == Pong()
    assert server.lines == []


async def test_the_principal_is_the_certificates(server: Server) -> None:
    async with server.greeted("spiffe://elsewhere/user/mallory") as client:
        for message in (PRODUCE, fetch(), Metadata(), CreateTopic("audit"), Subscribe("orders", 0, 0, 1)):
            with pytest.raises(NotAuthorized):
                await client.ask(message)


@pytest.mark.parametrize(
    ("body", "error", "problem"),
    [
        ((99, 5, None), Unsupported, "type 99"),
        ((-1, 5, None), Unsupported, "type -1"),
        ((2, 5, None, 1, "n", b"", [], {}), Unsupported, "Welcome is not a request"),
        ((17, 5, None, b"", 0, 0, 0), Unsupported, "Delivery is not a request"),
        ((0, 5, None, "Internal", "x", {}, True), Unsupported, "Error is not a request"),
        ((1, 5, None, [1], "again"), Unsupported, "Hello is not a request"),
        ((10, 5, None), InvalidRequest, "Produce.topic, partition, acks, batch: missing"),
        ((10, 5, None, "orders", -1, "quorum", b""), InvalidRequest, "partition"),
        ((10, 5, None, "orders", 0, "all", b""), InvalidRequest, "acks"),
        ((10, 5, None, "orders", 0, "quorum", "text"), InvalidRequest, "batch"),
        ((10, 5, None, "orders", True, "quorum", b""), InvalidRequest, "partition"),
        ((12, 5, None, "orders", 0, 2**64 - 1, 2**32), InvalidRequest, "max_bytes"),
        ((42, 5, None, "audit", 1, 1, {"a": 1}), InvalidRequest, "configuration"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_the_connection_lives(
    server: Server, body: tuple[object, ...], error: type[LogdError], problem: str
) -> None:
    async with server.greeted() as client:
        client.connection._open[5] = Ping
        client.stream.client_send(raw(*body))
        refused = await client.error(5)
        assert type(refused) is error
        assert problem in str(refused)
        assert await client.ask(Ping()) == Pong()
    (line,) = server.lines
    assert line.startswith(f"bad_request principal={ADA} problem=")


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (struct.pack(">I", LIMITS.frame_bytes_max + 1), "a frame of 1048577 bytes"),
        (struct.pack(">I", 2**32 - 1), "a frame of 4294967295 bytes"),
        (frame(b"\xc1" * 10), "not msgpack"),
        (frame(b"\xdd\xff\xff\xff\xff"), "not msgpack"),
        (frame(b"\x91" * 2_000 + b"\x00"), "not"),
        (frame(b"\xd9\x01\xff\x00"), "not msgpack"),
        (raw(3, 0, None), "request id 0 is in use"),
        (raw(99, 0, None), "request id 0 is in use"),
        (raw(1, 0, None, [1], "again"), "request id 0 is in use"),
        (raw(3, 2**32, None), "unsigned integers"),
        (raw(3, 1, [1]), "neither nil nor a map"),
        (raw("ping"), "not an array"),
    ],
)
async def test_what_is_no_frame_ends_the_connection_with_a_reason(server: Server, sent: bytes, problem: str) -> None:
    async with server.greeted() as client:
        client.stream.client_send(sent)
        error = await client.farewell()
        assert isinstance(error, ProtocolError)
        assert problem in str(error)
    (line,) = server.lines
    assert line.startswith("protocol_error")


async def test_a_request_id_that_is_in_use_ends_the_connection(server: Server) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        request_id = client.send(PRODUCE)
        client.stream.client_send(encode(PRODUCE, request_id))
        assert isinstance(await client.farewell(), ProtocolError)
    server.release()
    assert len(server.lines) == 1


async def test_a_request_id_may_be_used_again_when_it_is_answered(server: Server) -> None:
    async with server.greeted() as client:
        for _ in range(3):
            client.connection._open[7] = Ping
            client.stream.client_send(encode(Ping(), 7))
            assert await client.event() == Answered(7, Pong())


async def test_what_stood_before_a_fault_is_handed_on_and_answered(server: Server) -> None:
    async with server.greeted() as client:
        client.send(PRODUCE)
        client.send(Ping())
        client.stream.client_send(b"\xff" * 4)
        assert isinstance(await client.event(), Answered)
        assert isinstance(await client.event(), Answered)
        hand_overs = server.hand_overs
        assert isinstance(await client.farewell(), ProtocolError)
        assert hand_overs > 0
    assert server.partition.end == 1


async def test_an_error_repeats_no_more_of_a_request_than_a_frame_holds(server: Server) -> None:
    async with server.greeted() as client:
        client.send(DescribeTopic("\x00" * 900_000))
        event = await client.event()
        assert isinstance(event, Refused)
        assert isinstance(event.error, TopicNotFound)
        assert len(str(event.error)) < 5_000
        assert len(str(event.error.details)) < 5_000


async def test_unknown_trailing_fields_and_headers_are_ignored(server: Server) -> None:
    async with server.greeted() as client:
        client.connection._open[5] = Ping
        client.stream.client_send(raw(3, 5, {"traceparent": "00-1", "unknown": [1]}, "trailing", 7))
        assert await client.event() == Answered(5, Pong())


# --- Slowness ---------------------------------------------------------------------------------------------------------


async def test_a_frame_has_to_arrive_in_time_however_it_trickles(server: Server, autojump_clock: MockClock) -> None:
    async with server.greeted() as client:
        await trio.sleep(1_000)
        before = trio.current_time()
        for byte in encode(PRODUCE, 1)[:150]:
            client.stream.client_send(bytes((byte,)))
            await trio.sleep(0.2)
            if client.stream.is_closed:
                break
        error = await client.farewell()
        assert "a frame that takes longer than 20 s" in str(error)
        assert trio.current_time() - before == pytest.approx(20, abs=0.5)
    assert len(server.lines) == 1


async def test_frames_that_follow_each_other_each_have_their_time(server: Server, autojump_clock: MockClock) -> None:
    async with server.greeted() as client:
        data = b"".join(client.connection.request(Ping())[1] for _ in range(11))
        # Always a whole frame and a part of the next, and so never between two.
        size = len(data) // 11
        for place in range(10):
            client.stream.client_send(data[place * size + size // 2 * (place > 0) : (place + 1) * size + size // 2])
            await trio.sleep(15)
        client.stream.client_send(data[10 * size + size // 2 :])
        await wait_all_tasks_blocked()
        assert len(client.events_nowait()) == 11
    assert server.lines == []


async def test_by_default_nobody_is_too_silent(server: Server, autojump_clock: MockClock) -> None:
    async with server.greeted() as client:
        await trio.sleep(80_000)
        assert await client.ask(Ping()) == Pong()


async def test_a_silent_client_is_closed_if_that_is_wanted(server: Server, autojump_clock: MockClock) -> None:
    server.change(idle_seconds=60.0)
    async with server.greeted() as client:
        await trio.sleep(50)
        await client.ask(Ping())
        before = trio.current_time()
        assert "no request within 60 s" in str(await client.farewell())
        assert trio.current_time() - before == pytest.approx(60)
    assert len(server.lines) == 1


async def test_a_client_that_waits_for_the_node_is_not_silent(server: Server, autojump_clock: MockClock) -> None:
    server.change(idle_seconds=10.0)
    server.partition.holds = True
    async with server.greeted() as client:
        request_id = client.send(PRODUCE)
        await trio.sleep(99)
        server.release()
        assert isinstance(await client.answer(request_id), Produced)
        # Its silence begins with the answer.
        await trio.sleep(9)
        subscription = client.send(Subscribe("orders", 0, 1, 1000))
        await client.answer(subscription)
        await trio.sleep(100)
        server.partition.fill(1)
        await client.delivered(subscription)


async def test_a_client_that_takes_nothing_is_closed(server: Server, autojump_clock: MockClock) -> None:
    server.partition.fill(20, value=bytes(200_000))
    async with server.greeted(kernel_bytes_max=1_000) as client:
        client.send(fetch())
        before = trio.current_time()
        await client.stream.client_wait_closed()
        # It is given up after its time, and its last words are not waited for much longer.
        assert 30 <= trio.current_time() - before <= 32
    assert server.lines == [f'send_failed principal={ADA} problem="the client took no byte for 30 s"']


async def test_a_client_that_takes_little_but_steadily_is_served(server: Server, autojump_clock: MockClock) -> None:
    server.partition.fill(1, value=bytes(50_000))
    async with server.greeted(kernel_bytes_max=1_000) as client:
        client.send(fetch())
        received = 0
        while received < 50_000:
            await trio.sleep(20)
            received += len(client.stream.client_receive_nowait())
        assert not client.stream.is_closed
    assert server.lines == []


# --- Bounds -----------------------------------------------------------------------------------------------------------


async def test_answers_come_as_they_become_true_not_as_they_were_asked_for(server: Server) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        slow = client.send(PRODUCE)
        assert await client.ask(Ping()) == Pong()
        server.release()
        assert isinstance(await client.answer(slow), Produced)


async def test_beyond_its_requests_in_flight_a_client_is_not_read_and_nothing_is_lost(server: Server) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        ids = [client.send(PRODUCE) for _ in range(20)]
        ids.append(client.send(Ping()))
        await wait_all_tasks_blocked()
        assert len(server.partition.held) == LIMITS.requests_in_flight_max
        assert client.events_nowait() == []
        answers: list[ClientEvent] = []
        while len(answers) < 21:
            server.release()
            await wait_all_tasks_blocked()
            assert len(server.partition.held) <= LIMITS.requests_in_flight_max
            answers += client.events_nowait()
        produced = [event[0] for event in answers if isinstance(event, Answered) and isinstance(event.answer, Produced)]
        assert produced == ids[:20]
        assert {event[0] for event in answers} == set(ids)
    assert server.partition.end == 20


async def test_beyond_its_bytes_in_flight_a_client_is_not_read_and_nothing_is_lost(server: Server) -> None:
    server.partition.holds = True
    large = Produce("orders", 0, Acks.QUORUM, batch_of(value=bytes(400_000)))
    async with server.greeted() as client:
        for _ in range(6):
            client.send(large)
        await wait_all_tasks_blocked()
        # The third is above the bound: it is known only when it is there, and the fourth waits.
        assert len(server.partition.held) == 3
        server.release()
        await wait_all_tasks_blocked()
        assert len(server.partition.held) == 3
        server.release()
        await wait_all_tasks_blocked()
        assert len(client.events_nowait()) == 6


async def test_subscriptions_do_not_use_up_the_requests_in_flight(server: Server) -> None:
    server.change(requests_in_flight_max=1)
    async with server.greeted() as client:
        for partition in range(3):
            await client.ask(Subscribe("orders", partition, 0, 1))
        assert await client.ask(Ping()) == Pong()


async def test_beyond_the_budget_of_all_a_request_is_refused_and_the_connection_lives(server: Server) -> None:
    server.partition.holds = True
    large = Produce("orders", 0, Acks.QUORUM, batch_of(value=bytes(400_000)))
    server.budget.bytes_max = 900_000
    async with server.greeted() as one, server.greeted() as other:
        one.send(large)
        one.send(large)
        await wait_all_tasks_blocked()
        assert len(server.partition.held) == 2
        refused = await other.error(other.send(large))
        assert isinstance(refused, Overloaded)
        assert refused.details["delay_seconds"] > 0
        # Small ones find room.
        assert await other.ask(Ping()) == Pong()
        server.release()
        again = other.send(large)
        await wait_all_tasks_blocked()
        server.release()
        assert isinstance(await other.answer(again), Produced)


async def test_a_request_above_the_whole_budget_is_taken_when_it_is_alone(server: Server) -> None:
    server.budget.bytes_max = 10
    async with server.greeted() as client:
        assert isinstance(await client.ask(PRODUCE), Produced)


async def test_the_budget_is_given_back_when_a_client_leaves(server: Server) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        client.send(PRODUCE)
        client.send(fetch(0, max_wait_ms=50_000))
        await client.ask(Subscribe("orders", 1, 0, 1))
        assert server.budget.taken_bytes > 0
        assert server.gate.requests == 2
        client.stream.client_close()
        await client.end()
        assert server.budget.taken_bytes == 0
        assert server.gate.requests == 0
    # A late answer finds nobody, and disturbs nobody.
    server.release()
    assert server.budget.taken_bytes == 0


def pings(_: int) -> Ping:
    return Ping()


def nonsense(_: int) -> DescribeTopic:
    return DescribeTopic("no such topic")


def descriptions(_: int) -> DescribeTopic:
    return DescribeTopic("orders")


@pytest.mark.parametrize("message", [pings, nonsense, descriptions])
async def test_a_client_that_asks_and_does_not_read_fills_no_memory(
    server: Server, message: Callable[[int], Ping | DescribeTopic], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 50_000
    monkeypatch.setattr("logd.server.outbox.UNSENT_BYTES_MAX", bound)
    async with server.greeted(kernel_bytes_max=10_000) as client:
        answer_bytes = 0
        client.stream.client_send(b"".join(client.connection.request(message(n))[1] for n in range(10_000)))
        await wait_all_tasks_blocked()
        assert bound < client.stream.unsent_bytes < bound + 100_000
        # When it reads, it is served to the end.
        count = 0
        while count < 10_000:
            await wait_all_tasks_blocked()
            count += len(client.events_nowait())
        assert answer_bytes == client.stream.unsent_bytes == 0


async def test_fetches_that_nobody_reads_are_made_one_by_one(server: Server) -> None:
    value = bytes(400_000)
    server.partition.fill(60, value=value)
    server.change(requests_in_flight_max=200)
    async with server.greeted(kernel_bytes_max=10_000) as client:
        for _ in range(100):
            client.send(fetch(0, max_bytes=500_000))
        await wait_all_tasks_blocked()
        assert server.partition.reading_max == 1
        assert client.stream.unsent_bytes < UNSENT_BYTES_MAX + 500_000
        answered = 0
        while answered < 100:
            await wait_all_tasks_blocked()
            answered += len(client.events_nowait())
        assert len(server.partition.reads) == 100


async def test_subscriptions_that_nobody_reads_pile_up_within_the_bound(server: Server) -> None:
    for number in range(3):
        server.cluster.partition("orders", number).fill(100, value=bytes(400_000))
    async with server.greeted(kernel_bytes_max=10_000) as client:
        for number in range(3):
            client.send(Subscribe("orders", number, 0, 2**32 - 1))
        await wait_all_tasks_blocked()
        assert client.stream.unsent_bytes < UNSENT_BYTES_MAX + (1 << 20)
        received = 0
        offsets = dict.fromkeys((1, 2, 3), 0)
        while received < 300 * 400_000:
            await wait_all_tasks_blocked()
            for event in client.events_nowait():
                if isinstance(event, Delivered):
                    received += len(event.delivery.batches)
                    offsets[event.request_id] = event.delivery.next_offset
        assert set(offsets.values()) == {100}


async def test_long_polls_wait_side_by_side_and_hold_nobody_up(server: Server, autojump_clock: MockClock) -> None:
    async with server.greeted() as client:
        slow = client.send(fetch(0, max_wait_ms=30_000))
        other = client.send(Fetch("orders", 1, 0, 1 << 20, 30_000))
        await wait_all_tasks_blocked()
        server.cluster.partition("orders", 1).fill(1)
        assert isinstance(await client.answer(other), Fetched)
        before = trio.current_time()
        assert await client.answer(slow) == Fetched(b"", 0, 0, 0)
        assert trio.current_time() - before == pytest.approx(30)


async def test_a_thousand_small_requests_leave_the_others_their_turn(server: Server) -> None:
    async with server.greeted() as greedy, server.greeted() as modest:
        greedy.stream.client_send(b"".join(greedy.connection.request(Ping())[1] for _ in range(10_000)))
        modest.send(Ping())
        await modest.event()
        # The modest one was served long before the greedy one was done.
        assert len(greedy.events_nowait()) < 1_000


async def test_answers_of_one_moment_leave_in_one_piece(server: Server) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        for _ in range(5):
            client.send(PRODUCE)
        await wait_all_tasks_blocked()
        sends = client.stream.sends
        server.release()
        assert client.stream.sends == sends + 1
        assert len(client.events_nowait()) == 5


async def test_refusals_at_once_do_not_wait_for_the_actor(server: Server) -> None:
    async with server.greeted() as client:
        for _ in range(3):
            with pytest.raises(CorruptBatch):
                await client.ask(Produce("orders", 0, Acks.QUORUM, BATCH[:-1] + b"y"))
        assert server.corks._outboxes == []


# --- Deadlines --------------------------------------------------------------------------------------------------------


async def test_a_produce_that_is_not_durable_in_time_has_an_unknown_outcome(
    server: Server, autojump_clock: MockClock
) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        before = trio.current_time()
        error = await client.error(client.send(PRODUCE, timeout_ms=2_500))
        assert isinstance(error, OutcomeUnknown)
        assert trio.current_time() - before == pytest.approx(2.5)
        # The late answer is dropped, also when its request id is in use again.
        client.connection._last_request_id = 0
        again = client.send(PRODUCE)
        await wait_all_tasks_blocked()
        (first, second) = server.partition.held
        first.reply(Produced(0, 1, 1, b"", "quorum_fsync", ()))  # type: ignore[arg-type]  # it is the word on the wire
        server.corks.release()
        await wait_all_tasks_blocked()
        assert client.events_nowait() == []
        server.partition.held = [second]
        server.release()
        assert isinstance(await client.answer(again), Produced)
    server.partition.held = []


async def test_each_request_has_its_own_deadline(server: Server, autojump_clock: MockClock) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        before = trio.current_time()
        ids = {client.send(PRODUCE, timeout_ms=seconds * 1000): seconds for seconds in (9, 3, 6)}
        client.send(PRODUCE)
        for seconds in (3, 6, 9):
            event = await client.event()
            assert isinstance(event, Refused)
            assert ids[event.request_id] == seconds
            assert trio.current_time() - before == pytest.approx(seconds)
        await trio.sleep(10_000)
        assert len(server.partition.held) == 4
        server.release()


async def test_a_request_in_time_leaves_nothing_of_its_deadline(server: Server, autojump_clock: MockClock) -> None:
    async with server.greeted() as client:
        tasks = trio.lowlevel.current_statistics().tasks_living
        for _ in range(100):
            await client.ask(PRODUCE, timeout_ms=86_400_000)
        assert trio.lowlevel.current_statistics().tasks_living == tasks


@pytest.mark.parametrize("timeout_ms", [0, -5, 1.5, "1", None, True, [1], 2**64 - 1])
async def test_a_deadline_that_makes_no_sense_is_none(
    server: Server, autojump_clock: MockClock, timeout_ms: object
) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        client.connection._open[5] = Produce
        body = msgpack.packb([10, 5, {"timeout_ms": timeout_ms}, "orders", 0, "quorum", BATCH])
        client.stream.client_send(frame(body))
        await trio.sleep(80_000)
        server.release()
        assert isinstance(await client.answer(5), Produced)


async def test_other_requests_have_deadlines_too(server: Server, autojump_clock: MockClock) -> None:
    server.cluster.gate = trio.Event()
    async with server.greeted() as client:
        before = trio.current_time()
        assert isinstance(await client.error(client.send(CreateTopic("audit"), timeout_ms=5_000)), OutcomeUnknown)
        assert trio.current_time() - before == pytest.approx(5)
        assert await client.ask(Ping()) == Pong()


# --- Subscriptions ----------------------------------------------------------------------------------------------------


async def test_a_subscription_delivers_as_records_and_credit_come(server: Server, autojump_clock: MockClock) -> None:
    size = server.partition.fill(2)
    async with server.greeted() as client:
        subscription = client.send(Subscribe("orders", 0, 0, 2 * size))
        assert await client.answer(subscription) == Subscribed(0, 2)
        assert (await client.delivered(subscription)).delivery.next_offset == 2
        server.partition.fill(1)
        await wait_all_tasks_blocked()
        assert client.events_nowait() == []
        client.stream.client_send(client.connection.credit(subscription, 10))
        assert (await client.delivered(subscription)).delivery.next_offset == 3


async def test_a_subscription_ends_when_it_is_asked_to(server: Server) -> None:
    async with server.greeted() as client:
        subscription = client.send(Subscribe("orders", 0, 0, 1_000))
        await client.answer(subscription)
        client.stream.client_send(client.connection.unsubscribe(subscription))
        assert await client.answer(subscription) == Unsubscribed()
        server.partition.fill(1)
        # Credit and another goodbye that were on their way then are nobody's fault.
        client.stream.client_send(raw(16, subscription, None, 100) + raw(18, subscription, None))
        assert await client.ask(Ping()) == Pong()
        # Its id, and its place among the others, are free again.
        for number in (1, 2, 3):
            await client.ask(Subscribe("orders", number, 0, 1))


async def test_a_subscription_that_is_ended_in_one_breath_ends_once(server: Server) -> None:
    async with server.greeted() as client:
        subscription, data = client.connection.request(Subscribe("orders", 0, 0, 1))
        goodbye = client.connection.unsubscribe(subscription)
        client.stream.client_send(data + goodbye + goodbye)
        assert await client.answer(subscription) == Subscribed(0, 0)
        assert await client.answer(subscription) == Unsubscribed()
        assert await client.ask(Ping()) == Pong()


async def test_a_subscriptions_id_is_in_use_while_it_runs(server: Server) -> None:
    async with server.greeted() as client:
        subscription = client.send(Subscribe("orders", 0, 0, 1))
        await client.answer(subscription)
        client.stream.client_send(encode(Ping(), subscription))
        assert isinstance(await client.farewell(), ProtocolError)


async def test_subscriptions_are_bounded(server: Server) -> None:
    async with server.greeted() as client:
        for _ in range(3):
            await client.ask(Subscribe("orders", 0, 0, 1))
        with pytest.raises(Overloaded, match="3 subscriptions already"):
            await client.ask(Subscribe("orders", 0, 0, 1))
        assert await client.ask(Ping()) == Pong()


async def test_a_subscription_to_a_deleted_topic_ends_with_an_error(server: Server) -> None:
    async with server.greeted() as client, server.greeted() as admin:
        subscription = client.send(Subscribe("orders", 0, 0, 1_000))
        await client.answer(subscription)
        await admin.ask(DeleteTopic("orders"))
        assert isinstance(await client.error(subscription), LogdError)
        assert await client.ask(Ping()) == Pong()
        assert client.connection.requests_in_flight == 0


# --- One client's fault, and the end ----------------------------------------------------------------------------------


async def test_what_one_client_does_wrong_no_other_notices(server: Server, autojump_clock: MockClock) -> None:
    server.partition.fill(50, value=bytes(300_000))
    async with server.greeted() as good, server.greeted(kernel_bytes_max=100) as deaf:
        deaf.send(fetch())
        for sent in (b"\xff" * 8, raw(3, 0, None), frame(b"\xc1" * 4), b""):
            async with server.greeted() as bad:
                bad.stream.client_send(sent)
                if not sent:
                    bad.stream.client_close("connection reset by peer")
                await bad.stream.client_wait_closed()
            assert isinstance(await good.ask(PRODUCE), Produced)
        await trio.sleep(60)
        assert deaf.stream.is_closed
        assert isinstance(await good.ask(PRODUCE), Produced)
    assert sorted(line.split()[0] for line in server.lines) == ["protocol_error"] * 3 + ["send_failed"]


async def test_a_flood_of_faults_is_a_few_lines(server: Server) -> None:
    async with server.greeted() as client:
        for number in range(1, 1_000):
            client.stream.client_send(raw(99, number, None))
        await wait_all_tasks_blocked()
    assert len(server.lines) == 10


async def test_a_client_cannot_write_a_line_of_its_own(server: Server) -> None:
    async with server.greeted() as client:
        client.send(CreateTopic("x\n2026-01-01 error forged", 1))
        client.stream.client_send(raw(10, 9, None, "orders", 0, "a\nforged line", b""))
        await wait_all_tasks_blocked()
    assert len(server.lines) == 1


async def test_a_draining_node_answers_what_it_has_and_refuses_what_is_new(
    server: Server, autojump_clock: MockClock
) -> None:
    server.partition.holds = True
    async with server.greeted() as client, trio.open_nursery() as nursery:
        taken = client.send(PRODUCE)
        poll = client.send(fetch(0, max_wait_ms=60_000))
        await wait_all_tasks_blocked()
        drained = trio.Event()

        async def drain() -> None:
            await server.gate.drain()
            drained.set()

        before = trio.current_time()
        nursery.start_soon(drain)
        # A wait for records that may never come is not worth waiting for.
        assert await client.answer(poll) == Fetched(b"", 0, 0, 0)
        assert trio.current_time() == before
        for message in (PRODUCE, fetch(), Ping(), Subscribe("orders", 0, 0, 1)):
            error = await client.error(client.send(message))
            assert isinstance(error, ShuttingDown)
            assert error.retriable
        assert not drained.is_set()
        server.release()
        assert isinstance(await client.answer(taken), Produced)
        await drained.wait()


async def test_a_node_without_requests_is_drained_at_once(server: Server) -> None:
    async with server.greeted() as client:
        await client.ask(Subscribe("orders", 0, 0, 1_000))
        with trio.fail_after(1):
            await server.gate.drain()
        assert not server.gate.is_open


async def test_what_was_answered_leaves_when_the_session_is_cancelled(
    server: Server, autojump_clock: MockClock
) -> None:
    server.partition.fill(1, value=bytes(100_000))
    stream = MemoryStream(kernel_bytes_max=1_000)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.session(stream).run)
        client = Client(stream)
        await client.greet()
        client.send(fetch())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            while stream.unsent_bytes or len(received) < 100_000:
                received += stream.client_receive_nowait()
                await trio.sleep(0.001)
            received += stream.client_receive_nowait()
    client.connection.feed(received)
    assert isinstance(next(client.connection.events()), Answered)


async def test_a_client_that_does_not_read_delays_the_end_by_a_second_at_most(
    server: Server, autojump_clock: MockClock
) -> None:
    server.partition.fill(1, value=bytes(100_000))
    before = 0.0
    async with server.greeted(kernel_bytes_max=1_000) as client:
        client.send(fetch())
        await wait_all_tasks_blocked()
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(session_module.FAREWELL_SECONDS)


async def test_an_answer_after_the_end_is_dropped(server: Server) -> None:
    server.partition.holds = True
    async with server.greeted() as client:
        client.send(PRODUCE)
        await wait_all_tasks_blocked()
    server.release()
    server.corks.release()
    assert client.events_nowait() == []
    assert server.lines == []


async def test_a_defect_in_a_verb_ends_its_session_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_offset: int, _bytes_max: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(server.partition, "read", broken)
    server.partition.fill(1)
    async with server.greeted() as good:
        with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
            async with server.greeted() as client:
                client.send(fetch())
                await client.end()
        assert await good.ask(Ping()) == Pong()
