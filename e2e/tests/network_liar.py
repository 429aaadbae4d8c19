"""What guests run, as root, where one lies to the others.

    watch WHERE WORD…       notes each WORD that a frame which comes in holds, a line each, in WHERE
    lie KEY=VALUE…          sends every lie once: own and other MACs (`own`, `victim`, `third`) and
                            addresses (`me`, `to`, `sibling`, `gateway`, `world`)

Each lie holds a word of its own, so that whoever it reaches can be asked. The last frames are true.
"""

import socket
import struct
import sys

ALL = b"\xff" * 6
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
UDP, ICMP6 = 17, 58
OUTGOING = 4
MORE = 0x2000


def frames():
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    raw.bind(("eth0", 3))
    return raw


def watch(where, words):
    raw, seen = frames(), set()
    with open(where, "w", buffering=1) as notes:
        while True:
            frame, about = raw.recvfrom(2000)
            if about[2] == OUTGOING:
                continue
            for word in words:
                if word.encode() in frame and word not in seen:
                    seen.add(word)
                    print(word, file=notes)


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(source, to, payload, offset=0, protocol=UDP):
    """An IPv4 packet, or a fragment of one."""
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 77, offset, 64, protocol, 0)
    return head[:10] + struct.pack("!H", checksum(head + addresses)) + addresses + payload


def datagram(source, to, text, ports=(53, 7777)):
    payload = struct.pack("!HHHH", *ports, 8 + len(text), 0) + text
    return packet(source, to, payload)


def arp(operation, mac, address, to_mac, to, text):
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac + socket.inet_aton(address) + to_mac + socket.inet_aton(to) + text


def lies(own, victim, third, me, to, sibling, gateway, world):
    """Destination, source, kind of frame, and what is in it."""
    own, victim, third = (bytes.fromhex(mac.replace(":", "")) for mac in (own, victim, third))
    for whom in (victim, ALL):
        yield whom, own, IPV4, datagram(gateway, to, b"lie-as-the-gateway")
        yield whom, own, IPV4, datagram(sibling, to, b"lie-as-the-sibling")
        yield whom, own, IPV4, datagram("8.8.8.8", to, b"lie-as-a-stranger")
        yield whom, third, IPV4, datagram(me, to, b"lie-with-its-mac")
        answer = b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0lie-dns-answer\0"
        yield whom, own, IPV4, datagram(gateway, to, answer, (53, 40000))
        offer = b"\2\1\6\0" + bytes(12) + b"lie-dhcp-offer!!"
        yield whom, own, IPV4, datagram(gateway, "255.255.255.255", offer, (67, 68))
        # Whole, if both pieces came: the second has the word.
        whole = struct.pack("!HHHH", 53, 7777, 8 + 8 + 14, 0) + bytes(8) + b"lie-fragmented"
        yield whom, own, IPV4, packet(gateway, to, whole[:16], MORE)
        yield whom, own, IPV4, packet(gateway, to, whole[16:], 2)
        # Who has the gateway's and the sibling's address: asked, answered, and said unasked.
        yield whom, own, ARP, arp(2, own, gateway, victim, to, b"lie-arp-gateway")
        yield whom, own, ARP, arp(2, own, sibling, victim, to, b"lie-arp-sibling")
        yield whom, own, ARP, arp(1, own, gateway, bytes(6), gateway, b"lie-arp-announced")
        yield whom, third, ARP, arp(1, third, sibling, bytes(6), to, b"lie-arp-with-its-mac")
        local = [socket.inet_pton(socket.AF_INET6, f"fe80::{last}") for last in (1, 2)]
        advert = b"\x86\0\0\0\x40\0\x07\x08" + bytes(8) + b"lie-router-advert"
        head = struct.pack("!IHBB", 6 << 28, len(advert), ICMP6, 255)
        yield whom, own, IPV6, head + b"".join(local) + advert
    router = bytes.fromhex("060000000001")
    for source in (sibling, "10.9.9.9", "8.8.8.8", world):
        yield router, own, IPV4, datagram(source, world, b"lie-to-the-world")
    yield victim, own, IPV4, datagram(me, to, b"what-is-true")
    yield third, own, IPV4, datagram(me, sibling, b"what-is-true")
    yield router, own, IPV4, datagram(me, world, b"what-is-true")


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch(sys.argv[2], sys.argv[3:])
    else:
        raw = frames()
        for whom, source, kind, payload in lies(**dict(w.split("=") for w in sys.argv[2:])):
            raw.send(whom + source + struct.pack("!H", kind) + payload)
