"""What is changed in an IPv4 packet: one bit of what it carries, with its checksum left wrong or made right.

Pure. Packets are as a TUN device gives them: no link header, headers and checksums complete.
"""

from __future__ import annotations

from nomadpy.entropy import Entropy

TCP, UDP = 6, 17
_HEADERS = {TCP: (20, 16), UDP: (8, 6)}
"""Per protocol: the least length of its header, and where its checksum stands in it."""


def is_ipv4(packet: bytes) -> bool:
    """Whether it can be forwarded at all."""
    return len(packet) >= 20 and packet[0] >> 4 == 4


def with_bit_flipped(packet: bytes, source: Entropy) -> bytes:
    """The packet with one bit behind the IP header flipped and its checksum as it was: the receiver's kernel must drop it."""
    begin = _header_length(packet)
    if begin >= len(packet):
        return packet
    changed = bytearray(packet)
    changed[source.choice(range(begin, len(packet)))] ^= 1 << source.choice(range(8))
    return bytes(changed)


def with_payload_forged(packet: bytes, source: Entropy) -> bytes:
    """The packet with one bit of its TCP or UDP payload flipped and a checksum that fits: only what is above TCP can notice.

    What carries no payload, or is a fragment, stays as it is.
    """
    begin = _payload(packet)
    if begin is None or begin >= len(packet):
        return packet
    changed = bytearray(packet)
    changed[source.choice(range(begin, len(packet)))] ^= 1 << source.choice(range(8))
    at = _header_length(packet) + _HEADERS[packet[9]][1]
    changed[at : at + 2] = b"\0\0"
    changed[at : at + 2] = checksum(bytes(changed)).to_bytes(2, "big")
    return bytes(changed)


def checksum(packet: bytes) -> int:
    """The sum of a packet's TCP or UDP part and its pseudo header; 0 over a packet whose checksum fits.

    Source: RFC 1071, RFC 9293 section 3.1.
    """
    begin = _header_length(packet)
    data = packet[12:20] + bytes((0, packet[9])) + (len(packet) - begin).to_bytes(2, "big")
    data += packet[begin:]
    if len(data) % 2:
        data += b"\0"
    # The sum of 16-bit words with the carry added back is the rest of the whole number by 0xFFFF.
    rest = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - rest if rest else 0


def _header_length(packet: bytes) -> int:
    return (packet[0] & 0x0F) * 4


def _payload(packet: bytes) -> int | None:
    """Where the payload begins; None for other protocols and for fragments."""
    begin = _header_length(packet)
    least, _ = _HEADERS.get(packet[9], (0, 0))
    fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    if not least or fragment or len(packet) < begin + least:
        return None
    return begin + (packet[begin + 12] >> 4) * 4 if packet[9] == TCP else begin + least
