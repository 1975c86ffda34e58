#!/usr/bin/env python3
"""Holds connections open against a TLS server, in the ways in which a bad client does; opens closed ones again.

Usage: attack.py PORT COUNT WAYS [CERTIFICATE KEY]      WAYS: a comma list of idle, hello, headers, body
Prints "holding" once COUNT connections are open at the same time (with "flood" among WAYS: were opened, whatever the server
made of them), and goes on until its standard input ends.
"""
import os
import resource
import selectors
import socket
import ssl
import sys
import time

port, count, ways = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
flood, ways = "flood" in ways, [way for way in ways if way != "flood"]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["http/1.1"])
if len(sys.argv) > 4:
    context.load_cert_chain(sys.argv[4], sys.argv[5])


class Connection:
    """One connection: it connects, shakes hands where its way wants that, and then says a byte now and then."""

    def __init__(self, way):
        self.way = way
        self.socket = socket.create_connection(("127.0.0.1", port))
        if way == "hello":
            self.socket.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello, and no more
        self.said = 0
        if way in ("headers", "body"):
            self.socket.settimeout(20)
            self.socket = context.wrap_socket(self.socket)
            if way == "headers":
                self.text = b"POST /v1/key/decrypt/my-key HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 1000
            else:
                head = b"POST /v1/key/decrypt/my-key HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n"
                self.socket.sendall(head)
                self.text = b'{"ciphertext":"' + b"A" * 100000
        self.socket.setblocking(False)

    def is_open(self):
        try:
            if self.way in ("headers", "body"):
                self.socket.send(self.text[self.said : self.said + 1])
                self.said += 1
            return self.socket.recv(4096) != b""
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False


connections, told, number = [], False, 0
stdin = selectors.DefaultSelector()
stdin.register(sys.stdin, selectors.EVENT_READ)
while True:
    if stdin.select(timeout=0) and not os.read(0, 1):
        sys.exit(0)
    begun = time.monotonic()
    kept = []
    for connection in connections:
        if connection.is_open():
            kept.append(connection)
        else:
            connection.socket.close()
    connections = kept
    while len(connections) < count and time.monotonic() - begun < 2:
        try:
            connections.append(Connection(ways[number % len(ways)]))
        except OSError:
            time.sleep(0.01)
        number += 1
    if not told and (number >= count if flood else len(connections) >= count):
        told = True
        print("holding", flush=True)
    time.sleep(0.2)
