"""One end of one conversation: smux, snappy, KCP and FEC, put together; all layers but encryption.

In      opened packets, stream data from above, `now`
Out     packets in a batch, still to be sealed; stream data and events upwards
Knows   the order of the layers, and when one must wait for another. Not: keys, sockets, threads
Wire    docs/protocol.md, "Layers"
Cost    the sum of its layers
"""

from collections.abc import Sequence
from contextlib import nullcontext

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.rows import PacketList
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.budget import SEGMENT_BYTES, SEGMENT_COST, Budget, Share, Taken
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.fec.decoder import HELD_BYTES_MAX, FecDecoder
from kcptun_lite.core.fec.encoder import FecEncoder, UncodedFec
from kcptun_lite.core.kcp.kcp import READ_SEGMENTS, Flush, Kcp
from kcptun_lite.core.kcp.sender import QUEUE_TARGET
from kcptun_lite.core.kcp.window_tuning import WindowTuning
from kcptun_lite.core.mux.dialect import Dialect, Guess
from kcptun_lite.core.mux.smux import Event, SmuxSession
from kcptun_lite.core.overtaking import Overtaking
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.streams import StreamLayer
from kcptun_lite.core.validation import AddressValidation
from kcptun_lite.core.wire import FEC_HEADER_SIZE, SMUX_HEADER_SIZE, Buffer, is_run_of_segments
from kcptun_lite.errors import RemoteProtocolError

# Bytes that a conversation may hold however little the budget has left, so that it always gets on.
SEND_LEAST = 32 * 1024
RECEIVE_LEAST = 64 * 1024
FEC_LEAST = 32 * 1024  # a group or two; one group of the shards that are set here, if that is more
HANDSHAKE_BYTES = 250  # of the credit of an address that is not validated: our hello, and its repetitions
ANSWERS_MAX = 4 * QUEUE_TARGET  # bytes queued, far above what writers may fill: who makes us answer must take it, too
MOST_PARITY = 2  # for each data shard; who wants 1/255 would have us send 256 times as much, and gets none
BYTES_PER_FRAME = 2  # compressed; frames cost time, and those that are not the same again and again have 4 at the least
FRAMES_FREE = 4096
EXPANDED_BYTES = 22 * SEGMENT_BYTES  # what a segment may hold once it is decompressed


class Conversation:
    """All layers of one end but encryption. Not thread-safe; nobody below it knows the clock."""

    def __init__(
        self,
        conv: int,
        params: ConversationParams,
        counters: Counters,
        *,
        is_client: bool,
        headroom: int,
        tailroom: int,
        now: int,
        share: Share | None = None,
        is_validated: bool = True,
        ts_offset: int = 0,
    ) -> None:
        """One end that has sent and heard nothing.

        Args:
            headroom, tailroom: what encryption adds to a packet.
            share: says how much may be held.
            is_validated: the peer is known to be where its packets come from; else little is sent until it is.
            ts_offset: ms that timestamps are ahead of `now`; where `is_validated` is False nobody may know it.
        """
        self.share = share or Share(Budget(nullcontext()))
        self._counters = counters
        self._is_client = is_client
        self._room_around = headroom, tailroom
        self._ts_offset = ts_offset
        self._now = now
        self._events: list[Event] = []
        self._layer = StreamLayer(params, is_client=is_client, now=now)
        self._begin(conv, params, is_validated=is_validated)
        self._push_frames()

    def _begin(self, conv: int, params: ConversationParams, *, is_validated: bool) -> None:
        """All that is below the streams, as if nothing had been sent or heard."""
        self.conv = conv
        self.params = params
        headroom, tailroom = self._room_around
        has_fec = params.has_fec
        # Packets that are multiples of 16 leave no gaps: GRO's runs stay where they are, GSO's are one piece.
        kcp_params = params.kcp._replace(mtu=params.kcp.mtu // PACKET_ALIGNMENT * PACKET_ALIGNMENT)
        self.validation = AddressValidation(is_validated=is_validated)
        self.is_holding_back = False
        "something was not sent, because the peer's address is not validated"
        self.kcp = Kcp(
            conv,
            kcp_params,
            self._counters,
            headroom=headroom + FEC_HEADER_SIZE * has_fec,
            tailroom=tailroom,
            ts_offset=self._ts_offset,
            validation=self.validation,
        )
        self.kcp.is_terse = not is_validated
        self._overtaking = Overtaking(self.kcp.sender.queue)
        self._window = WindowTuning(kcp_params.rcv_wnd, kcp_params.rcv_wnd_max)
        self._encoder: FecEncoder | UncodedFec | None = None
        if has_fec:
            is_open = params.adapts or (self._is_client and not params.has_own_shards)
            self._encoder = UncodedFec(headroom) if is_open else self._make_encoder()
        self._decoder = FecDecoder(self._counters)
        self._fec_least = max(FEC_LEAST, params.shards_bytes)
        self._has_answered = self._has_said_hello = False
        self._taken = Taken()
        self._pulled_bytes = 0
        "of the peer's stream, before they were decompressed"
        self._is_broken = False
        "the peer's bytes made no sense, or a bug has lost some of them"

    def begin_again(self, conv: int, dialect: Dialect, now: int) -> None:
        """Say all again in another dialect, to a peer that has understood nothing of it (`guess`)."""
        self._now = now
        self._begin(conv, self.params, is_validated=True)
        self._has_said_hello = True
        self.kcp.send(self._layer.begin_again(dialect))

    # -- streams -------------------------------------------------------------------------------

    def open_stream(self) -> int:
        """Open a stream and return its id."""
        if self._is_client and not self._has_said_hello:
            self._has_said_hello = True
            self._streams.hello()
        sid = self._streams.open_stream()
        self._push_frames(sid, is_ahead=self._overtaking.ask(sid, SMUX_HEADER_SIZE))
        return sid

    def send_stream_data(self, sid: int, data: memoryview) -> int:
        """Take bytes of a stream; returns how many, 0 while the session or the stream must wait.

        Raises: StreamClosed, StreamReset.
        """
        return self._send_stream_data(sid, data, self.kcp.send_room * self.kcp.mss)

    def send_ahead(self, sid: int, data: memoryview) -> int:
        """As `send_stream_data`, of a small message before what others have waiting; 0 if it must stand in line."""
        is_ahead = self._overtaking.ask(sid, SMUX_HEADER_SIZE + len(data))
        return self._send_stream_data(sid, data, len(data), is_ahead=True) if is_ahead else 0

    def _send_stream_data(self, sid: int, data: memoryview, room: int, *, is_ahead: bool = False) -> int:
        room = min(room, len(data), self.guess.room if self.guess else len(data))
        if not self.validation.is_validated:  # what would be held back may as well wait here
            room = min(room, self.validation.credit - self.kcp.send_bytes - HANDSHAKE_BYTES)
        if room <= 0:
            return 0
        if self.share.is_limited:
            room = min(room, self.share.update(self.held_bytes, self.sending_bytes(), room, SEND_LEAST))
            if not room:
                return 0
        taken = self._streams.send_data(sid, data[:room])
        self._push_frames(sid, is_ahead=is_ahead)
        return taken

    def stream_room(self, sid: int) -> int:
        """Bytes that the peer's window for this stream lets through; 0 is "wait for StreamWritable"."""
        return self._streams.send_room(sid)

    def take_stream_data(self, sid: int, limit: int) -> list[bytes]:
        """Received bytes of a stream, in order, about `limit`; what this unblocks shows in the events."""
        self._note_taken(sid, 0)
        chunks = self._streams.take(sid, limit)
        if chunks:
            self._note_taken(sid, sum(map(len, chunks)))
            self._push_frames()
            self._pull()
            self._account()
        return chunks

    def is_read_up(self, sid: int) -> bool:
        """Whether nothing of a stream is there to take nor has ended, now that its reader is done with what it had."""
        self._note_taken(sid, 0)
        return not self._streams.is_readable(sid)

    def is_finished(self, sid: int) -> bool:
        """Whether the peer has ended the stream and all its data was taken."""
        return self._streams.is_finished(sid)

    def is_cut(self, sid: int) -> bool:
        """Whether the peer has given a finished stream up: what was taken is not all there was."""
        return self._streams.is_cut(sid)

    def is_listening(self, sid: int) -> bool:
        """Whether the peer still takes data of the stream, and we have not ended it."""
        return self._streams.is_listening(sid)

    def is_doubtful(self, sid: int) -> bool:
        """Whether the peer may listen no more: a kcptun has sent an end that may have meant both directions."""
        return self._streams.is_doubtful(sid)

    def finish_stream(self, sid: int) -> None:
        """Tell the peer that no more comes; receiving goes on."""
        self._streams.finish(sid)
        self._push_frames(sid, is_ahead=self._overtaking.ask(sid, 2 * SMUX_HEADER_SIZE))

    def close_stream(self, sid: int) -> None:
        """Give the stream up in both directions; it was cut, unless `finish_stream` was called before."""
        self._streams.close(sid)
        self._push_frames()
        self._overtaking.forget(sid)
        self._note_taken(sid, 0)
        self._pull()
        self._account()

    @property
    def smux_version(self) -> int:
        """1 or 2; 0 until an adapting end has heard the peer's first bytes."""
        return self._layer.smux_version

    @property
    def is_compressed(self) -> bool:
        return self._layer.is_compressed

    @property
    def guess(self) -> Guess | None:
        """While nobody knows whether the peer understands what is spoken."""
        return self._layer.guess

    @property
    def is_peer_ours(self) -> bool:
        """Whether the peer has said that it is of our kind, and no kcptun."""
        return self.smux is not None and self.smux.is_peer_ours

    def take_events(self) -> list[Event]:
        """What has happened since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def wants_fast_parity(self) -> bool:
        """Whether parity is sent to a peer that has spoken: the first bytes of one of ours make us do without."""
        return self._pulled_bytes > 0 and isinstance(self._encoder, FecEncoder)

    @property
    def held_bytes(self) -> int:
        """Everything buffered in this conversation."""
        return self.sending_bytes() + self.receiving_bytes()

    # -- packets -------------------------------------------------------------------------------

    def receive_packets(self, packets: Sequence[memoryview], now: int, *, is_elsewhere: bool = False) -> None:
        """Take opened packets of this conversation; the views are free again when this returns.

        `is_elsewhere`: they come from another address than those before.
        Raises: RemoteProtocolError when the bytes in order make no sense; the session must end.
        """
        self._now = now
        kcp = self.kcp
        was_validated = self.validation.is_validated
        if not was_validated:
            self.validation.on_received(
                sum(map(len, packets)) + len(packets) * sum(self._room_around), is_elsewhere=is_elsewhere
            )
        if self.share.is_limited:  # each packet may be kept twice: as a shard and as a segment
            self._account(sum(map(len, packets)) * 2 + len(packets) * SEGMENT_COST)
        try:
            self._take_packets(packets, now)
            if self.validation.is_validated and not was_validated:
                kcp.is_terse = False
                kcp.window.give_up(now)  # say once more what was held back
                kcp.flush_wanted = Flush.EVERYTHING
            self._pull()
            self._tune_window(now)
        except RemoteProtocolError as exc:
            if not self.guess:
                raise
            self.guess.refute(exc)
        finally:  # whatever happens, nothing that is kept may lie in a batch that others will use
            if kcp.received.count:
                kcp.received.detach()
        told = kcp.windows_told, kcp.windows_told_from_zero
        if self.guess and self._layer.weigh_guess(now, kcp.progress()[0] > 0, *told):
            kcp.probe()
        self._account()

    def _take_packets(self, packets: Sequence[memoryview], now: int) -> None:
        for stretch in packets.stretches() if isinstance(packets, PacketList) else (packets,):
            datagrams, recovered = self._decoder.receive(stretch)
            self.kcp.receive(datagrams, now)
            if recovered := [datagram for datagram in recovered if is_run_of_segments(datagram, self.conv)]:
                self.kcp.receive(recovered, now, recovered=True)
        if isinstance(self._encoder, UncodedFec):
            if self._decoder.shards:
                self._take_shards(*self._decoder.shards)
            elif self._decoder.has_bare and self._is_client:  # a kcptun without FEC would read parity as data
                self._do_without_fec()

    def packets_to_send(self, batch: PacketBatch, now: int) -> bool:
        """Put packets into the batch, still to be sealed; True if the batch was full: send it and call again."""
        self._now = now
        slots = (batch.capacity - batch.end) // self.params.slot
        encoder = self._encoder
        first = len(batch)
        if encoder is None:
            more = self.kcp.flush(batch, now, slots)
            self._hold_back(batch, first)
            return more
        is_coded = isinstance(encoder, FecEncoder)
        data, parity = self.params.data_shards, self.params.parity_shards if is_coded else 0
        more = self.kcp.flush(batch, now, max(1, (slots - parity) * data // (data + parity)))
        if len(batch) > first:
            encoder.protect(batch, first, now)
        self._hold_back(batch, first)
        return more

    def _hold_back(self, batch: PacketBatch, first: int) -> None:
        """Drop all from the first packet on that is more than an address which is not validated may be sent."""
        if self.validation.is_validated:
            return
        lengths = batch.lengths
        self.is_holding_back = False
        for index in range(first, len(batch)):
            if self.is_holding_back or not self.validation.spend(lengths[index]):
                self.is_holding_back = True
                batch.drop(index)

    def tick(self, now: int) -> None:
        """Do what time has made due: keep-alive, retransmission, delayed acknowledgements.

        Raises: KeepaliveTimeout.
        """
        self._now = now
        if self.smux:
            self.smux.tick(now)
            self._push_frames()
        if self.share.is_limited:
            self._account()  # others may have given something back
        else:
            self.share.update(self.held_bytes)  # for who asks what is held
        if self._encoder:
            self._encoder.rest(now)
        if self.guess and self.guess.wants_question(now):
            self.kcp.probe()
        deadline = self.kcp.next_deadline()
        if deadline is not None and now >= deadline:
            self.kcp.flush_wanted = Flush.EVERYTHING

    def ping(self) -> None:
        """Send something that says nothing but is new, so that the peer learns where we are now."""
        self._streams.ping()
        self._push_frames()

    def say_goodbye(self) -> None:
        """Tell the peer that the session is over here: one of ours forgets it, those of kcptun take no notice."""
        if self.smux:
            self.smux.bye()
            self._push_frames()

    @property
    def is_held_up(self) -> bool:
        """Whether readers that have stopped, here or there, keep all streams waiting, or soon will."""
        return not self.kcp.rmt_wnd or (self.smux is not None and self.smux.is_filling)

    @property
    def has_peer_left(self) -> bool:
        """Whether it has said goodbye; all it had to say has come."""
        return self.smux is not None and self.smux.has_peer_left

    def has_peer_restarted(self, now: int) -> bool:
        """Whether the peer knows nothing of this conversation any more; a client that is restarted has a new one."""
        return self._is_client and not self.guess and self.kcp.has_peer_restarted(now)

    def next_deadline(self) -> int | None:
        """ms of the next `tick` that matters to KCP; keep-alive runs on the caller's slow rhythm."""
        deadlines = self.kcp.next_deadline(), self.guess.ask_at if self.guess else None
        return min((at for at in deadlines if at is not None), default=None)

    @property
    def peer_shards(self) -> tuple[int, int] | None:
        """The data and parity shards that the peer sends, once they are certain; (0, 0): none."""
        return (0, 0) if self._decoder.has_bare else self._decoder.shards

    # -- inside --------------------------------------------------------------------------------

    @property
    def smux(self) -> SmuxSession | None:
        return self._layer.smux

    @property
    def _streams(self) -> SmuxSession:
        smux = self._layer.smux
        assert smux is not None, "no stream exists before the peer's first bytes"
        return smux

    def _tune_window(self, now: int) -> None:
        """Announce what the peer needs, where no receive window was set."""
        if not self.params.kcp.rcv_wnd_max:
            return
        kcp, window = self.kcp, self._window
        before = window.limit
        window.on_rtt(kcp.rtt.latest)
        if self.smux and self.smux.is_peer_ours:
            window.open_wide()
        elif window.on_received(kcp.received.next_sn, kcp.rtt.latest, now) and self.smux:
            self.ping()
        if window.limit != before:
            kcp.advertise(window.limit)

    def _do_without_fec(self) -> None:
        """Both ends are ours, and nobody has asked for error correction: repetition costs less where losses are few."""
        if self._encoder and not self.params.has_own_shards:
            self._encoder = None
            self.kcp.drop_headroom(FEC_HEADER_SIZE)

    def _make_encoder(self, first_group: int = 0) -> FecEncoder:
        shards, is_thrifty = (self.params.data_shards, self.params.parity_shards), self.share.is_limited
        return FecEncoder(*shards, *self._room_around, is_thrifty=is_thrifty, first_group=first_group)

    def _take_shards(self, data: int, parity: int, first_group: int = 1) -> None:
        """Send parity from now on, in the numbers that the peer uses itself."""
        if parity <= MOST_PARITY * data:
            self.params = self.params._replace(data_shards=data, parity_shards=parity)
            self._encoder = self._make_encoder(first_group)

    def _pull(self) -> None:
        """Move what KCP has in order up to the streams, as far as their buffers allow.

        Raises: RemoteProtocolError; from then on nothing is moved any more.
        """
        if not self._is_broken:
            self._is_broken = True  # unless all goes well: nobody can read on behind what has failed
            self._pull_all()
            self._is_broken = False

    def _pull_all(self) -> None:
        while (self.smux is None or self.smux.has_room) and self.kcp.queued_bytes < ANSWERS_MAX:
            parts = self.kcp.received.count and self.kcp.read(self._most_to_read())
            if not parts:
                return
            data: Buffer = b"".join(parts)
            if not data:
                continue
            self._pulled_bytes += len(data)
            events = self._layer.feed(data, self._now)
            if events is None:
                continue
            self._events += events
            if self._streams.frames_received > FRAMES_FREE + self._pulled_bytes // BYTES_PER_FRAME:
                raise RemoteProtocolError("more frames than so few bytes can mean")
            if self._streams.is_peer_ours:
                self.kcp.know_ours()
                self._do_without_fec()
            if self._is_client and not self._has_answered:
                self._has_answered = True
                self._streams.ping()  # with it goes the acknowledgement the server waits for, until it has arrived
            self._push_frames()

    def _most_to_read(self) -> int:
        """Segments of which nothing would be too much, even decompressed; 0 if a reader must come first."""
        if not self.share.is_limited or not self._layer.may_expand:
            return READ_SEGMENTS
        wanted = min(self.kcp.received.count, READ_SEGMENTS) * EXPANDED_BYTES
        most = self.share.update(self.held_bytes, self.receiving_bytes(), wanted) // EXPANDED_BYTES
        has_readers = self._taken.size or (self.smux and self.smux.unread_bytes)
        return min(most, READ_SEGMENTS) or (0 if has_readers else 1)

    def sending_bytes(self) -> int:
        return self.kcp.send_bytes + len(self.kcp.window.segments) * SEGMENT_COST

    def receiving_bytes(self) -> int:
        received = self.kcp.received
        held = received.unread_bytes + received.unread_count * SEGMENT_COST
        return held + self._decoder.held_bytes + self._taken.size + self._layer.held_bytes

    def _note_taken(self, sid: int, size: int) -> None:
        """What a reader has in its hands now; when it is done with it, there may be room again."""
        if not self.share.is_limited:
            return
        if size:
            self._taken.add(sid, size)
        elif self._taken.drop(sid):
            self._pull()
            self._account()

    def _account(self, incoming: int = 0) -> None:
        """Under a limit, tell what is held, ask for `incoming` bytes, open the windows as far as the answer goes."""
        share = self.share
        if not share.is_limited:
            return
        received = self.receiving_bytes()
        allowance = share.update(self.sending_bytes() + received, received, incoming, RECEIVE_LEAST)
        kcp = self.kcp
        most = max(self.params.kcp.rcv_wnd, self.params.kcp.rcv_wnd_max)
        kcp.resize_window(min(most, kcp.received.unread_count + allowance // SEGMENT_BYTES))
        decoder = self._decoder
        decoder.held_limit = min(HELD_BYTES_MAX, max(self._fec_least, decoder.held_bytes + allowance // 2))

    def _push_frames(self, sid: int | None = None, *, is_ahead: bool = False) -> None:
        data = self._layer.bytes_to_send()
        if data:
            self.kcp.send(data, is_ahead=is_ahead)
        if sid is not None and not is_ahead:
            self._overtaking.note(sid)
