"""Hand a command line and open files to a preloaded worker, through a socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

AT_ONCE = 200  # descriptors in one message; Linux takes 253
MORE, TAKEN = b"more", b"taken"
LONGEST = 1 << 22  # bytes of a command line


def channel() -> tuple[socket.socket, socket.socket]:
    """Open both ends. Messages keep their boundaries, and the other end of a process that is gone reads as none."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
    """Send, and wait until it is taken. Raises OSError where the other process ends, or does not take it in the socket's time."""
    for first in range(0, len(descriptors), AT_ONCE):
        socket.send_fds(end, [MORE], descriptors[first : first + AT_ONCE])
    end.sendall(json.dumps([list(arguments), len(descriptors)]).encode())
    if end.recv(len(TAKEN)) != TAKEN:
        raise BrokenPipeError("nobody takes it")


def receive(end: socket.socket) -> tuple[list[str], list[int]] | None:
    """Wait for the command line and the descriptors, by this process's numbers.

    None where the sender is gone, or where not all came: a process may hold only so many, and the system drops the rest.
    """
    descriptors: list[int] = []
    while True:
        message, arrived, _, _ = socket.recv_fds(end, LONGEST, AT_ONCE)
        descriptors += arrived
        if not message:
            return None
        if message != MORE:
            arguments, count = json.loads(message)
            if len(descriptors) != count:
                return None
            end.sendall(TAKEN)
            return arguments, descriptors
