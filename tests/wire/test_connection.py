"""Both ends of the connection, against each other and against what may not arrive: no sockets, no time."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire import examples
from wire.codec import encode
from wire.connection import (
    CLIENT_HANDLERS,
    SERVER_HANDLERS,
    Answered,
    ClientConnection,
    ClientEvent,
    CreditGiven,
    Delivered,
    Faulted,
    Greeted,
    Limits,
    Refused,
    Requested,
    ServerConnection,
    ServerEvent,
    State,
    UnsubscribeAsked,
    Welcomed,
)
from wire.errors import LogdError, NotLeader, ProtocolError, TopicNotFound, UnknownError, Unsupported
from wire.frame import frame
from wire.messages import (
    ANSWERS,
    MESSAGES,
    Credit,
    Delivery,
    Error,
    Fetch,
    Hello,
    Message,
    Metadata,
    Ping,
    Pong,
    Produce,
    Subscribe,
    Subscribed,
    Unsubscribed,
    Welcome,
)
from wire.types import Acks


def client_events(client: ClientConnection, data: bytes) -> list[ClientEvent]:
    client.feed(data)
    return list(client.events())


def server_events(server: ServerConnection, data: bytes) -> list[ServerEvent]:
    server.feed(data)
    found = []
    while (event := server.next_event()) is not None:
        found.append(event)
    return found


def connected(limits: Limits | None = None) -> tuple[ClientConnection, ServerConnection]:
    client, server = ClientConnection(), ServerConnection(limits or Limits())
    (greeted,) = server_events(server, client.hello("test"))
    assert isinstance(greeted, Greeted)
    (welcomed,) = client_events(client, server.welcome("node-1", bytes(16)))
    assert isinstance(welcomed, Welcomed)
    return client, server


def test_a_greeting_makes_both_ends_ready_and_tells_the_limits() -> None:
    limits = Limits(frame_bytes_max=5000, batch_bytes_max=4000, requests_in_flight_max=3, bytes_in_flight_max=9000)
    client, server = connected(limits)
    assert {client.state, server.state} == {State.READY}
    assert client.limits == limits
    assert client.requests_in_flight == server.requests_in_flight == 0


def test_limits_of_a_newer_server_are_ignored_and_missing_ones_have_defaults() -> None:
    assert Limits.from_wire({"frame_bytes_max": 5, "hats_max": 3}) == Limits(frame_bytes_max=5)


def test_a_request_is_answered_once_and_forgotten() -> None:
    client, server = connected()
    request_id, data = client.request(Ping(), {"timeout_ms": 5})
    (event,) = server_events(server, data)
    assert event == Requested(request_id, Ping(), {"timeout_ms": 5})
    assert client.requests_in_flight == server.requests_in_flight == 1
    answer = server.answer(request_id, Pong())
    assert client_events(client, answer) == [Answered(request_id, Pong())]
    assert client.requests_in_flight == server.requests_in_flight == server.bytes_in_flight == 0
    with pytest.raises(ProtocolError, match="does not answer"):
        client_events(client, answer)
    assert client.state is State.CLOSED


def test_answers_may_come_in_any_order() -> None:
    client, server = connected()
    sent = [client.request(Ping()) for _ in range(3)]
    events = server_events(server, b"".join(data for _, data in sent))
    assert len(events) == 3
    ids = [request_id for request_id, _ in sent]
    answers = b"".join(server.answer(request_id, Pong()) for request_id in reversed(ids))
    assert [event[0] for event in client_events(client, answers)] == ids[::-1]


def test_an_error_arrives_as_its_type_with_its_details() -> None:
    client, server = connected()
    request_id, data = client.request(Metadata())
    server_events(server, data)
    ((got_id, error),) = client_events(client, server.refuse(request_id, NotLeader("elsewhere", {"leader": "node-2"})))
    assert got_id == request_id
    assert isinstance(error, NotLeader)
    assert (str(error), error.details, error.retriable) == ("elsewhere", {"leader": "node-2"}, True)


def test_an_error_of_the_future_is_an_unknown_error() -> None:
    client, _ = connected()
    request_id, _ = client.request(Ping())
    ((_, error),) = client_events(client, encode(Error("Tired", "need sleep", {"hours": 8}, True), request_id))
    assert isinstance(error, UnknownError)
    assert error.details == {"hours": 8, "code": "Tired"}
    assert "Tired" in str(error)


def test_an_error_about_the_connection_closes_it() -> None:
    client, server = connected()
    client.request(Ping())
    ((request_id, error),) = client_events(client, server.farewell(ProtocolError("too slow")))
    assert request_id == 0
    assert str(error) == "too slow"
    assert {client.state, server.state} == {State.CLOSED}
    with pytest.raises(ProtocolError, match="closed"):
        client.request(Ping())


def test_a_subscription_lives_until_it_is_ended() -> None:
    client, server = connected()
    request_id, data = client.request(Subscribe("t", 0, 5, 1000))
    server_events(server, data)
    assert client_events(client, server.answer(request_id, Subscribed(0, 9))) == [
        Answered(request_id, Subscribed(0, 9))
    ]
    delivery = Delivery(b"batches", 7, 0, 9)
    for _ in range(3):
        assert client_events(client, server.deliver(request_id, delivery)) == [Delivered(request_id, delivery)]
    assert server_events(server, client.credit(request_id, 500)) == [CreditGiven(request_id, 500)]
    assert server_events(server, client.unsubscribe(request_id)) == [UnsubscribeAsked(request_id)]
    assert client_events(client, server.deliver(request_id, delivery)) == [Delivered(request_id, delivery)]
    ended = server.answer(request_id, Unsubscribed())
    assert client_events(client, ended) == [Answered(request_id, Unsubscribed())]
    assert client.credit(request_id, 1) == client.unsubscribe(request_id) == b""
    with pytest.raises(ProtocolError, match="no subscription"):
        client_events(client, server.deliver(request_id, delivery))


def test_a_subscription_may_end_with_an_error() -> None:
    client, server = connected()
    request_id, data = client.request(Subscribe("t", 0, 5, 1000))
    server_events(server, data)
    client_events(client, server.answer(request_id, Subscribed(0, 9)))
    (event,) = client_events(client, server.refuse(request_id, TopicNotFound("deleted")))
    assert isinstance(event, Refused)
    assert client.requests_in_flight == server.requests_in_flight == 0


def test_credit_and_farewell_that_cross_the_end_of_a_subscription_harm_nothing() -> None:
    client, server = connected()
    request_id, data = client.request(Subscribe("t", 0, 0, 1))
    server_events(server, data)
    crossing = client.credit(request_id, 5) + client.unsubscribe(request_id)
    server.refuse(request_id, TopicNotFound("deleted"))
    assert server_events(server, crossing) == []
    assert server.state is State.READY


def test_a_server_is_full_at_its_limits_and_answers_make_room() -> None:
    client, server = connected(Limits(requests_in_flight_max=2))
    ids = []
    for _ in range(2):
        request_id, data = client.request(Ping())
        ids.append(request_id)
        server_events(server, data)
    assert server.is_full
    server.answer(ids[0], Pong())
    assert not server.is_full


def test_bytes_in_flight_are_bounded_too() -> None:
    client, server = connected(Limits(bytes_in_flight_max=100))
    request_id, data = client.request(Produce("t", 0, Acks.NONE, bytes(200)))
    server_events(server, data)
    assert (server.is_full, server.bytes_in_flight) == (True, len(data) - 4)
    server.refuse(request_id, TopicNotFound("x"))
    assert (server.is_full, server.bytes_in_flight) == (False, 0)


def test_subscriptions_do_not_fill_a_server() -> None:
    client, server = connected(Limits(requests_in_flight_max=1))
    for _ in range(5):
        request_id, data = client.request(Subscribe("t", 0, 0, 1))
        server_events(server, data)
        server.answer(request_id, Subscribed(0, 0))
    assert not server.is_full


def test_a_frame_above_the_servers_limit_is_not_sent() -> None:
    client, _ = connected(Limits(frame_bytes_max=1000))
    with pytest.raises(ProtocolError, match="above the limit of 1000"):
        client.request(Produce("t", 0, Acks.NONE, bytes(1000)))
    assert client.requests_in_flight == 0
    client.request(Produce("t", 0, Acks.NONE, bytes(900)))


def test_a_request_before_the_greeting_is_not_sent() -> None:
    client = ClientConnection()
    with pytest.raises(ProtocolError, match="greeting"):
        client.request(Ping())


def test_request_ids_are_used_again_but_never_while_open() -> None:
    client, _ = connected()
    first, _ = client.request(Ping())
    client._last_request_id = 2**32 - 2
    assert client.request(Ping())[0] == 2**32 - 1
    assert client.request(Ping())[0] == first + 1


# --- what may not arrive ---


def test_before_the_greeting_nothing_but_a_hello_is_heard() -> None:
    for message in examples.MESSAGES:
        if not isinstance(message, Hello):
            server = ServerConnection(Limits())
            with pytest.raises(ProtocolError):
                server_events(server, encode(message, 0))
            assert server.state is State.CLOSED
            assert server_events(server, encode(Hello((1,), ""), 0)) == []


def test_before_the_greeting_frames_are_small() -> None:
    server = ServerConnection(Limits())
    with pytest.raises(ProtocolError, match="allowed are 4 to 4096"):
        server_events(server, (4097).to_bytes(4, "big"))


@pytest.mark.parametrize("kind", [row.kind for row in MESSAGES], ids=lambda kind: kind.__name__)
def test_every_message_at_a_ready_server_is_handled_or_unsupported(kind: type[Message]) -> None:
    _, server = connected()
    message = next(item for item in examples.MESSAGES if type(item) is kind)
    events = server_events(server, encode(message, 5))
    if (State.READY, kind) not in SERVER_HANDLERS:
        (event,) = events
        assert isinstance(event, Faulted)
        assert isinstance(event.error, Unsupported)
    elif kind in ANSWERS and kind.__name__ != "Unsubscribe":
        assert [type(event) for event in events] == [Requested]
    else:
        assert events == []
    assert server.state is State.READY


@pytest.mark.parametrize("kind", [row.kind for row in MESSAGES], ids=lambda kind: kind.__name__)
def test_every_message_at_a_client_that_asked_nothing_ends_the_connection(kind: type[Message]) -> None:
    client, _ = connected()
    message = next(item for item in examples.MESSAGES if type(item) is kind)
    with pytest.raises(ProtocolError):
        client_events(client, encode(message, 5))
    assert client.state is State.CLOSED


def test_the_tables_hold_no_pair_that_no_message_can_reach() -> None:
    kinds = {row.kind for row in MESSAGES}
    assert {kind for _, kind in CLIENT_HANDLERS} <= kinds
    assert {kind for _, kind in SERVER_HANDLERS} <= kinds
    assert not any(state is State.CLOSED for state, _ in (*CLIENT_HANDLERS, *SERVER_HANDLERS))


def test_a_version_that_was_not_offered_is_refused() -> None:
    client = ClientConnection()
    client.hello("test")
    with pytest.raises(ProtocolError, match="version 2"):
        client_events(client, encode(Welcome(2, "n", b"", (), {}), 0))


def test_a_request_id_in_use_ends_the_connection() -> None:
    for again in (encode(Ping(), 7), encode(Pong(), 7), frame(b"\x94\x0a\x07\xc0\x01")):
        _, server = connected()
        server_events(server, encode(Fetch("t", 0, 0, 1), 7))
        with pytest.raises(ProtocolError, match="request id 7 is in use"):
            server_events(server, again)
    _, server = connected()
    with pytest.raises(ProtocolError, match="request id 0 is in use"):
        server_events(server, encode(Ping(), 0))


def test_a_bad_field_refuses_its_request_and_nothing_else() -> None:
    client, server = connected()
    bad = frame(b"\x94\x0a\x09\xc0\x01")
    request_id, data = client.request(Ping())
    first, second = server_events(server, bad + data)
    assert isinstance(first, Faulted)
    assert first.request_id == 9
    assert second == Requested(request_id, Ping(), {})


def test_a_wrong_answer_ends_the_connection() -> None:
    for answer in (Welcome(1, "n", b"", (), {}), Subscribed(0, 0), Unsubscribed(), Credit(1), Ping()):
        client, _ = connected()
        request_id, _ = client.request(Ping())
        with pytest.raises(ProtocolError):
            client_events(client, encode(answer, request_id))


def test_an_answer_that_cannot_be_read_ends_the_connection() -> None:
    client, _ = connected()
    with pytest.raises(ProtocolError, match="cannot be understood"):
        client_events(client, frame(b"\x93\x0b\x01\xc0"))


Feed = Callable[[bytes], object]


@given(data=st.binary(max_size=300), framed=st.booleans(), ready=st.booleans())
def test_any_bytes_at_either_end_are_events_or_a_protocol_error(data: bytes, framed: bool, ready: bool) -> None:
    client, server = connected() if ready else (ClientConnection(), ServerConnection(Limits()))
    if framed and len(data) >= 4:
        data = frame(data)
    for feed in (lambda: client_events(client, data), lambda: server_events(server, data)):
        try:
            feed()
        except LogdError as error:
            assert type(error) is ProtocolError  # noqa: PT017  # whether it raises is the input's matter


@given(st.lists(st.tuples(st.sampled_from(examples.MESSAGES), st.integers(0, 3)), max_size=12))
def test_any_messages_at_either_end_leave_consistent_books(sent: list[tuple[Message, int]]) -> None:
    client, server = connected()
    for message, request_id in sent:
        try:
            server_events(server, encode(message, request_id))
        except ProtocolError:
            assert server.state is State.CLOSED
            break
    assert server.requests_in_flight <= 4
    assert (server.bytes_in_flight > 0) == (server.requests_in_flight > 0)
    for message, request_id in sent:
        try:
            client_events(client, encode(message, request_id))
        except ProtocolError:
            break
    assert client.state is State.CLOSED or not sent
