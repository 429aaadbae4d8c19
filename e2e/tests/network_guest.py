"""What the guests of the network's matrix run, as root: who answers, and who asks.

    serve                       echoes by TCP and UDP, and notes every IPv6 frame that comes in
    probe SELF EXPECTED TARGET  says of each target how it went; see `network_matrix.rs`

A target is `name=address,address,…`. Its cell is a letter for TCP, UDP and ping of its IPv4 address, a
slash, and a letter for each IPv6 address, whichever of the three got furthest: `o` is open, `r` refused
(a reset, or ICMP "administratively prohibited"), `-` silent, `?` any other ICMP. Who expects silence waits two seconds for
it, or as long as other cells take; who expects anything else has twenty.
"""

import errno
import os
import selectors
import socket
import struct
import sys
import threading
import time

PORT = 7777
PATIENCE, DEADLINE, AGAIN = 2, 20, 1
IP_RECVERR, IPV6_RECVERR = 11, 25
BY_ICMP = (2, 3)
ETH_P_IPV6, OUTGOING = 0x86DD, 4
SEEN, LISTENS = "/tmp/ipv6-seen", "/tmp/listens"


def serve():
    threading.Thread(target=note_ipv6).start()
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.bind(("::", PORT))
    threading.Thread(target=echo_datagrams, args=[datagrams]).start()
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    open(LISTENS, "w").close()
    while True:
        listener.accept()[0].close()


def echo_datagrams(datagrams):
    while True:
        try:
            data, peer = datagrams.recvfrom(99)
            datagrams.sendto(data, peer)
        except OSError:
            pass  # whom it cannot answer


def note_ipv6():
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IPV6))
    frames.bind(("eth0", ETH_P_IPV6))
    while True:
        try:
            frame, where = frames.recvfrom(2000)
        except OSError:
            continue  # the device was down for a moment
        if where[2] != OUTGOING:
            with open(SEEN, "a") as seen:
                print(frame.hex(), file=seen)


class Try:
    """One protocol to one address."""

    def __init__(self, address):
        self.ip6 = ":" in address
        family = socket.AF_INET6 if self.ip6 else socket.AF_INET
        self.to = socket.getaddrinfo(address, PORT, family, socket.SOCK_DGRAM)[0][4]
        self.family, self.letter = family, "-"

    def ask(self):
        pass

    def hear(self):
        pass


class Tcp(Try):
    def __init__(self, address, selector):
        super().__init__(address)
        self.socket = socket.socket(self.family)
        self.socket.setblocking(False)
        error = self.socket.connect_ex(self.to)
        if error == errno.EINPROGRESS:
            selector.register(self.socket, selectors.EVENT_WRITE, self)
        elif error == 0:
            self.letter = "o"
        self.selector = selector

    def hear(self):
        self.selector.unregister(self.socket)
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.letter = {0: "o", errno.ECONNREFUSED: "r"}.get(error, "-")


class Udp(Try):
    def __init__(self, address, selector):
        super().__init__(address)
        self.socket = socket.socket(self.family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        level, option = (
            (socket.IPPROTO_IPV6, IPV6_RECVERR) if self.ip6 else (socket.IPPROTO_IP, IP_RECVERR)
        )
        self.socket.setsockopt(level, option, 1)
        selector.register(self.socket, selectors.EVENT_READ, self)
        self.ask()

    def ask(self):
        try:
            self.socket.sendto(b"hello", self.to)
        except OSError:
            pass  # what came back is in the queue, or there is no way

    def hear(self):
        try:
            _, notes, _, _ = self.socket.recvmsg(99, 999, socket.MSG_ERRQUEUE)
            for _, _, note in notes:
                _, origin, kind, code = struct.unpack_from("IBBB", note)
                # That no neighbour answers is said by nobody but this kernel.
                unheard = self.ip6 and (kind, code) == (1, 3)
                if origin in BY_ICMP and self.letter == "-" and not unheard:
                    prohibited = (kind, code) == ((1, 1) if self.ip6 else (3, 13))
                    self.letter = "r" if prohibited else "?"
        except BlockingIOError:
            pass
        try:
            if self.socket.recv(99) == b"hello":
                self.letter = "o"
        except OSError:
            pass


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Ping(Try):
    """An echo request, or a router solicitation if it is to all routers."""

    def __init__(self, address, sockets, number):
        super().__init__(address)
        self.socket, self.number = sockets[self.ip6], number
        self.routers = address.startswith("ff02::2%")
        self.ask()

    def ask(self):
        kind = 133 if self.routers else 128 if self.ip6 else 8
        ids = (0, 0) if self.routers else (os.getpid() & 0xFFFF, self.number)
        message = struct.pack("!BBHHH", kind, 0, 0, *ids)
        if not self.ip6:
            message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
        try:
            self.socket.sendto(message, (self.to[0], 0, *self.to[2:]))
        except OSError:
            pass  # no way there


class Pong:
    """What comes in by ICMP, for all that have asked."""

    def __init__(self, pings, sockets, me):
        self.pings = {ping.number: ping for ping in pings}
        self.sockets, self.me = sockets, me

    def hear(self):
        for ip6, icmp in enumerate(self.sockets):
            while True:
                try:
                    message, sender = icmp.recvfrom(2000)
                except OSError:
                    break
                if ip6:
                    self.hear6(message, sender[0])
                else:
                    self.hear4(message[20:])

    def hear4(self, message):
        if message[:2] == b"\3\x0d" and message[17] == 1:
            self.found(message[28:], "r")
        elif message[0] == 0:
            self.found(message, "o")

    def hear6(self, message, sender):
        to_all = any(sender.split("%")[0] == own for own in self.me)
        if message[0] == 129 and not (to_all and self.asked_all(message)):
            self.found(message, "o")
        elif message[:2] == b"\1\1":
            self.found(message[48:], "r")
        elif message[0] == 134:
            for ping in self.pings.values():
                if ping.routers:
                    ping.letter = "o"

    def asked_all(self, echo):
        ping = self.pings.get(struct.unpack_from("!H", echo, 6)[0])
        return ping is not None and ping.to[0].startswith("ff02::1")

    def found(self, echo, letter):
        if len(echo) < 8:
            return
        ident, number = struct.unpack_from("!HH", echo, 4)
        if ident == os.getpid() & 0xFFFF and number in self.pings:
            self.pings[number].letter = letter


def probe(me, expected, targets):
    selector = selectors.DefaultSelector()
    sockets = [
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    ]
    for icmp in sockets:
        icmp.setblocking(False)
    table, tries = [], []
    for target in targets:
        tried = []
        for address in target.split("=")[1].split(","):
            ways = [Ping(address, sockets, len(tries))]
            if not address.startswith("ff"):
                ways = [Tcp(address, selector), Udp(address, selector)] + ways
            tries += ways
            tried.append(ways)
        table.append(tried)
    pong = Pong([way for way in tries if isinstance(way, Ping)], sockets, me.split(","))
    for icmp in sockets:
        selector.register(icmp, selectors.EVENT_READ, pong)

    started = asked = time.monotonic()
    while True:
        for key, _ in selector.select(AGAIN / 2):
            key.data.hear()
        now = time.monotonic()
        if now - started > PATIENCE:
            found = [cell(tried) for tried in table]
            if found == expected.split(",") or now - started > DEADLINE:
                break
        if now - asked > AGAIN:
            asked = now
            for way in tries:
                if way.letter == "-":
                    way.ask()
    print(" ".join(found))


def cell(tried):
    four = [ways for ways in tried if not ways[0].ip6]
    six = [ways for ways in tried if ways[0].ip6]
    letters = "".join(way.letter for ways in four for way in ways)
    return letters + "/" + "".join(furthest(ways) for ways in six)


def furthest(ways):
    return max((way.letter for way in ways), key="-r?o".index)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        probe(sys.argv[2], sys.argv[3], sys.argv[4:])
