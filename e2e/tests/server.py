"""What tests run in a guest behind the proxies: a server that does as the path says.

Usage: server.py PORT [ADDRESS]. One thread a connection, one request a connection.
"""

import base64
import hashlib
import os
import socket
import sys
import threading
import time

GO = "/tmp/go"
HINTED = "/tmp/hinted"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"

# What a browser does at once: a socket, events and a request, each shown where it belongs.
PAGE = """<!doctype html><title>page</title><link rel=icon href=data:,>
<p id=socket></p><p id=events></p><p id=asked></p>
<script>
const show = (id, text) => { document.getElementById(id).textContent += text; };
const socket = new WebSocket(location.origin.replace("http", "ws") + "/ws");
socket.onopen = () => socket.send("from the browser");
socket.onmessage = (said) => show("socket", said.data);
const events = new EventSource("/events");
events.onmessage = (said) => { show("events", said.data); };
events.onerror = () => events.close();
fetch("/asked").then((answer) => answer.text()).then((text) => show("asked", text));
</script>
"""


def read_head(peer):
    head = b""
    while b"\r\n\r\n" not in head:
        more = peer.recv(65536)
        if not more:
            return None, b""
        head += more
    head, rest = head.split(b"\r\n\r\n", 1)
    return head.decode("latin-1"), rest


def bodies(peer, head, rest):
    """The body's pieces, whichever way it is framed; b"" is the end of one in chunks."""
    fields = dict(
        line.split(": ", 1) for line in head.lower().split("\r\n")[1:] if ": " in line
    )
    stream = peer.makefile("rb")

    def take(count):
        nonlocal rest
        part, rest = rest[:count], rest[count:]
        return part or stream.read1(min(count, 65536))

    def line():
        text = b""
        while not text.endswith(b"\r\n"):
            text += take(1)
        return text.strip()

    if "chunked" in fields.get("transfer-encoding", ""):
        while True:
            left = int(line(), 16)
            if left == 0:
                trailer = line()
                if trailer:
                    line()
                yield trailer, True
                return
            while left:
                part = take(left)
                if not part:
                    return
                left -= len(part)
                yield part, False
            line()
    left = int(fields.get("content-length", "0"))
    while left:
        part = take(left)
        if not part:
            return
        left -= len(part)
        yield part, False


def answer(peer, body, status="200 OK", more=""):
    body = body if isinstance(body, bytes) else body.encode("latin-1")
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    peer.sendall(head.encode() + body)


def wait_for(path):
    deadline = time.time() + 60
    while not os.path.exists(path) and time.time() < deadline:
        time.sleep(0.02)


def chunks(peer, pieces, trailer=b"", more=""):
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{more}\r\n"
    peer.sendall(head.encode())
    for piece in pieces:
        peer.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
    peer.sendall(b"0\r\n" + trailer + b"\r\n")


def events():
    yield b"data: one\n\n"
    wait_for(GO)
    yield b"data: two\n\n"


def websocket(peer, head):
    """Sends every message back, until it is told to close."""
    key = [l for l in head.split("\r\n") if l.lower().startswith("sec-websocket-key")][0]
    magic = key.split(": ")[1] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
    peer.sendall(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\nX-Program: here\r\n\r\n".encode()
    )
    stream = peer.makefile("rb")
    while True:
        start = stream.read(2)
        if len(start) < 2:
            return
        length = start[1] & 0x7F
        if length == 126:
            length = int.from_bytes(stream.read(2), "big")
        elif length == 127:
            length = int.from_bytes(stream.read(8), "big")
        mask = stream.read(4)
        body = stream.read(length)
        key = (mask * (length // 4 + 1))[:length]
        body = (int.from_bytes(body, "big") ^ int.from_bytes(key, "big")).to_bytes(length, "big")
        if length < 126:
            size = bytes([length])
        elif length < 65536:
            size = b"\x7e" + length.to_bytes(2, "big")
        else:
            size = b"\x7f" + length.to_bytes(8, "big")
        peer.sendall(start[:1] + size + body)
        if start[0] & 0x0F == 8:
            return


def endless(peer, begin, more):
    peer.sendall(begin)
    while True:
        peer.sendall(more)


def half(peer):
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    while peer.recv(65536):
        pass
    open("/tmp/half-hung-up", "w").close()


def long(peer):
    """More than it says, which looks like an answer, and the connection stays open."""
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + poison)
    peer.recv(65536)


# Programs that do not keep to what they say, or to HTTP.
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LIES = {
    "nothing": lambda peer: None,
    "half": half,
    "short": lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"),
    "long": long,
    "cut": lambda peer: peer.sendall(CHUNKED + b"5\r\nbe"),
    "lengths": lambda peer: peer.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "endless-head": lambda peer: endless(peer, b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 1000),
    "endless-hints": lambda peer: endless(peer, b"", HINT * 1000),
    "endless-extension": lambda peer: endless(peer, CHUNKED + b"1;", b"x" * 65536),
}


def serve(peer):
    head, rest = read_head(peer)
    if head is None:
        return
    method, path, _ = head.split("\r\n")[0].split(" ")
    name = path.split("?")[0].strip("/").split("/")[0]
    if name == "sum":
        digest, count, trailer = hashlib.md5(), 0, b""
        for part, last in bodies(peer, head, rest):
            if last:
                trailer = part
            else:
                digest.update(part)
                count += len(part)
        answer(peer, f"{count} {digest.hexdigest()} {trailer.decode()}")
    elif name == "big":
        block = bytes(range(256)) * 256
        count = int(path.split("?")[1])
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * len(block)))
        for _ in range(count):
            peer.sendall(block)
    elif name == "events":
        chunks(peer, events(), more="Content-Type: text/event-stream\r\n")
    elif name == "trailers":
        chunks(peer, [b"body"], b"X-Sum: 42\r\n", "Trailer: X-Sum\r\n")
    elif name == "hints":
        peer.sendall(HINT * int((path.split("?") + ["1"])[1]))
        answer(peer, "after the hints")
    elif name == "hinted":
        peer.sendall(HINT)
        wait_for(HINTED)
        answer(peer, "after the hint")
    elif name == "page":
        answer(peer, PAGE, more="Content-Type: text/html\r\n")
    elif name in LIES:
        LIES[name](peer)
    elif name == "garbage":
        peer.sendall(b"\x00\x01 what is this\r\n\r\n")
    elif name == "refused":
        answer(peer, "no such method", "405 Method Not Allowed", "Allow: POST\r\n")
    elif name == "hang":
        open("/tmp/hung", "w").close()
        while peer.recv(65536):
            pass
        open("/tmp/hung-up", "w").close()
    elif name == "peer":
        answer(peer, peer.getpeername()[0])
    elif name == "ws":
        websocket(peer, head)
    elif name == "echo":
        peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
        echo(peer, rest or peer.recv(65536))
    else:
        # What the request looked like from here.
        answer(peer, head, more="X-Bhatti-Warning: a lie\r\n")


def echo(peer, part):
    while part:
        peer.sendall(part)
        part = peer.recv(65536)
    peer.shutdown(socket.SHUT_WR)


def run(peer, raw):
    try:
        if raw:
            echo(peer, peer.recv(65536))
        else:
            serve(peer)
    except OSError:
        pass
    finally:
        peer.close()


def listen(port, address, raw):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(256)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=run, args=(peer, raw), daemon=True).start()


# The port after it sends back whatever comes.
threading.Thread(target=listen, args=(int(sys.argv[1]) + 1, "127.0.0.1", True), daemon=True).start()
listen(int(sys.argv[1]), (sys.argv + ["127.0.0.1"])[2], False)
