"""Every header on one page, and the arithmetic of 32-bit serial numbers.

In      nothing
Out     struct layouts, protocol constants, `diff32`, packet classification
Knows   the layout of the wire. Not: what any field is for
Wire    docs/protocol.md, "Layers" and those after it
Cost    classification 0.2 us per packet

UDP payload, CRC methods (aes, none, xor ...), FEC on
 0             16     20         24     26     28
 +-------------+------+----------+------+------+--------------------------+   AEAD: nonce 12 | ... | tag 16
 | nonce       | crc  | seqid    | type | size | datagram: segment(s)     |   null: starts at seqid, or at conv
 +-------------+------+----------+------+------+--------------------------+   type 0xf1 data, 0xf2 parity
 |<- encrypted from byte 0 (CFB), the nonce included -------------------->|   crc = CRC-32 of all behind it
                                                                              size = 2 + len(datagram)
segment   conv u32 . cmd u8 . frg u8 . wnd u16 . ts u32 . sn u32 . una u32 . len u32 . data        (little endian)
frame     ver u8 . cmd u8 . length u16 . sid u32 . data                                            (little endian)
chunk     type u8 . length u24 . masked crc32c u32 . data; the stream starts ff 06 00 00 "sNaPpY"
Order of layers: TCP -> smux -> snappy -> KCP (stream mode) -> FEC -> crypt -> UDP
"""

import struct

Buffer = bytes | bytearray | memoryview

MASK32 = 0xFFFFFFFF
HALF32 = 0x80000000  # a number of 32 bits that is so far ahead of another is rather behind it
MTU_MAX = 1500  # bytes of UDP payload; kcp-go mtuLimit, also the size of its receive buffers

# Encryption (docs/protocol.md, "Packet layout", "aes-128-gcm")
CFB_IV = bytes.fromhex("a7734f9c12ac1b01a415f2c1fc78e66b")  # kcp-go crypt.go; 8-byte blocks use the first half
CRYPT_NONCE_SIZE = 16  # bytes
CRYPT_CRC_SIZE = 4  # bytes
CRYPT_HEADER_SIZE = CRYPT_NONCE_SIZE + CRYPT_CRC_SIZE  # bytes in front of the body, CRC methods
CRYPT_GCM_NONCE_SIZE = 12  # bytes in front of the body, aes-128-gcm
CRYPT_GCM_TAG_SIZE = 16  # bytes behind the body, aes-128-gcm

# Forward error correction (docs/protocol.md, "FEC header")
FEC_HEADER = struct.Struct("<IHH")  # seqid, type, size
FEC_HEADER_SIZE = 8  # bytes
FEC_PROTECTED_AT = 6  # offset from which Reed-Solomon covers a packet: the size field and the datagram
FEC_DATA = 0xF1
FEC_PARITY = 0xF2
FEC_OUT_OF_BAND = 0xF3  # kcp-go 5.6.7x only, never sent by kcptun
FEC_MAX_SHARDS = 256  # data + parity; GF(2^8)
FEC_DEFAULT_SHARDS = (10, 3)  # data and parity, of every generation

# KCP (docs/protocol.md, "Segment", "State")
KCP_SEGMENT = struct.Struct("<IBBHIIII")  # conv cmd frg wnd ts sn una len
KCP_HEADER_SIZE = 24  # bytes
KCP_SN_AT = 12  # offset of sn ...
KCP_UNA_AT = 16  # ... and of una
KCP_PUSH = 81  # data
KCP_ACK = 82
KCP_WASK = 83  # asks for the window
KCP_WINS = 84  # tells the window
KCP_RTO_INITIAL = 200  # ms; kcp.go IKCP_RTO_DEF
KCP_RTO_MIN = 100  # ms; IKCP_RTO_MIN
KCP_RTO_MIN_NODELAY = 30  # ms; IKCP_RTO_NDL
KCP_RTO_MAX = 60_000  # ms; IKCP_RTO_MAX
KCP_PROBE_INITIAL = 500  # ms between questions for a closed window; kcp-go 5.6.7x (5.6.1: 7000)
KCP_PROBE_LIMIT = 120_000  # ms
KCP_SSTHRESH_INITIAL = 2  # segments
KCP_SSTHRESH_MIN = 2  # segments
KCP_REFUSAL_TS = 0x4B4C0003  # in a WINS, where `ts` means nothing to kcptun: our server takes no session now
KCP_WND_MAX = 0xFFFF  # segments; the field has 16 bits
KCP_WND_INITIAL = 32  # segments assumed of the peer before it has told; docs/protocol.md, "State"

# snappy framing (docs/protocol.md, "snappy")
SNAPPY_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
SNAPPY_CHUNK_MAX = 65_536  # uncompressed bytes in one chunk

# smux (docs/protocol.md, "Frames", "Flow control")
SMUX_HEADER = struct.Struct("<BBHI")  # version cmd length sid
SMUX_HEADER_SIZE = 8  # bytes
SMUX_UPDATE = struct.Struct("<II")  # consumed, window: the payload of UPD
SMUX_SYN = 0
SMUX_FIN = 1
SMUX_PSH = 2
SMUX_NOP = 3
SMUX_UPD = 4
SMUX_PEER_WINDOW_INITIAL = 262_144  # bytes; smux initialPeerWindow


def diff32(later: int, earlier: int) -> int:
    """Signed distance from `earlier` to `later` on the 32-bit circle."""
    return ((later - earlier + HALF32) & MASK32) - HALF32


def fec_type(packet: Buffer) -> int:
    """FEC_DATA, FEC_PARITY, FEC_OUT_OF_BAND, or 0 for bare KCP (docs/protocol.md, "Bare or FEC").

    No clash is possible: a KCP segment has its cmd (81..84) at offset 4.
    """
    if len(packet) < 6 or packet[5] or not FEC_DATA <= packet[4] <= FEC_OUT_OF_BAND:
        return 0
    return packet[4]


def datagram_of(packet: memoryview) -> memoryview:
    """The KCP datagram in an opened packet; empty for parity."""
    kind = fec_type(packet)
    return packet[:0] if kind > FEC_DATA else packet[FEC_HEADER_SIZE if kind else 0 :]


def first_segment(packet: Buffer) -> tuple[int, int] | None:
    """(conv, sn) of a packet's first segment; None for parity or too short (docs/protocol.md, "Server sessions")."""
    kind = fec_type(packet)
    at = FEC_HEADER_SIZE if kind == FEC_DATA else 0
    if kind > FEC_DATA or len(packet) < at + KCP_HEADER_SIZE:
        return None
    conv, _, _, _, _, sn, _, _ = KCP_SEGMENT.unpack_from(packet, at)
    return conv, sn


def is_run_of_segments(datagram: Buffer, conv: int) -> bool:
    """Whether a datagram is made of whole KCP segments of this conversation and nothing else, as every one is."""
    at, size = 0, len(datagram)
    while size - at >= KCP_HEADER_SIZE:
        its_conv, cmd, _, _, _, _, _, length = KCP_SEGMENT.unpack_from(datagram, at)
        if its_conv != conv or not KCP_PUSH <= cmd <= KCP_WINS:
            return False
        at += KCP_HEADER_SIZE + (length if cmd == KCP_PUSH else 0)
    return at == size > 0
