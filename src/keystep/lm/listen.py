"""The address a server of keystep listens at: this machine's own, unless another is allowed by name."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from keystep.errors import BadInput


def listen(host: str, port: int, *, risk: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Args:
        risk: what whoever reaches the address could do; empty allows addresses that other machines reach.

    Raises:
        BadInput: such an address, where it is not allowed; a port that is taken or none.
    """
    if risk and not _is_loopback(host):
        mend = f"use 127.0.0.1, or allow it by name: {risk}"
        raise BadInput("this address is open to other machines", field="host", value=host, mend=mend)
    if not 0 <= port <= 65535:
        raise BadInput("no such port", field="port", value=port, mend="give 0 to 65535")
    bare = host.strip("[]")
    try:
        listening = socket.create_server((bare, port), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    except OSError as error:
        raise BadInput(f"cannot listen at {host}:{port} ({error.strerror})", field="port", mend="give another port") from None
    # Connections take it over; asyncio would do it only for sockets that were made another way. Without it every answer waits 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def address(host: str, listening: socket.socket) -> str:
    """Where such a socket is reached."""
    shown = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
