"""A client that passes descriptors Node cannot make: unsealed, half sealed or odd ones, and many at once.

Reads JSON lines {"hex": frame bytes, "each": bytes a send, "kinds": [descriptor kinds sent with each piece]},
writes for each line one JSON line {"sent": pieces sent}, and copies what the daemon answers as {"hex": bytes}.
Ends with its standard input.
"""

import array
import fcntl
import json
import os
import socket
import sys
import threading

F_ADD_SEALS = 1033
SEAL, SHRINK, GROW, WRITE = 1, 2, 4, 8
OUT = threading.Lock()
PAIR = socket.socketpair()


def memfd(seals, size=64 * 4096):
    fd = os.memfd_create("hostile", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


KINDS = {
    "unsealed": lambda: memfd(0),
    "grow": lambda: memfd(GROW),
    "shrink": lambda: memfd(SHRINK),
    "sealed": lambda: memfd(SHRINK | GROW),
    "frozen": lambda: memfd(SEAL | SHRINK | GROW | WRITE),
    "small": lambda: memfd(SHRINK | GROW, 4096),
    "empty": lambda: memfd(SHRINK | GROW, 0),
    "null": lambda: os.open("/dev/null", os.O_RDWR),
    "directory": lambda: os.open("/", os.O_RDONLY),
    "pipe": lambda: os.pipe()[0],
    "socket": lambda: os.dup(PAIR[0].fileno()),
}


def say(value):
    with OUT:
        print(json.dumps(value), flush=True)


def listen(connection):
    while True:
        try:
            data = connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            say({"closed": True})
            return
        say({"hex": data.hex()})


def main():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(sys.argv[1])
    threading.Thread(target=listen, args=(connection,), daemon=True).start()
    held = []
    for line in sys.stdin:
        order = json.loads(line)
        data = bytes.fromhex(order["hex"])
        each = order.get("each", len(data))
        sent = 0
        for at in range(0, len(data), each):
            fds = [KINDS[kind]() for kind in order["kinds"]]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                connection.sendmsg([data[at : at + each]], rights)
                sent += 1
            except OSError:
                break
            finally:
                if order.get("keep"):
                    held.extend(fds)
                else:
                    for fd in fds:
                        os.close(fd)
        say({"sent": sent})


main()
