"""Which network interface leads to the other hosts.

The library that exchanges numbers binds to what the host's own name resolves to, or to the loopback interface where
that fails, unless it is told an interface. On a cluster either may be wrong.
"""

import fcntl
import socket
import struct

_ADDRESS_OF = 0x8915
"""The request SIOCGIFADDR of Linux."""


def choose(named: str | None, leader: str) -> str | None:
    """The ``named`` one, where it exists and has an address; else the one that leads to the leader's address.

    None if there is neither: then the library chooses.
    """
    if named and _address_of(named):
        return named
    return leading_to(leader)


def leading_to(address: str) -> str | None:
    """The interface that the kernel would send from to an address. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect((address, 9))
            own = datagrams.getsockname()[0]
    except OSError:
        return None
    if own.startswith("127."):  # all of which are the loopback interface's, which tells but one
        own = "127.0.0.1"
    return next((name for _, name in socket.if_nameindex() if _address_of(name) == own), None)


def _address_of(name: str) -> str | None:
    """The IPv4 address of an interface; None if it has none, or does not exist."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            found = fcntl.ioctl(asked, _ADDRESS_OF, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(found[20:24])
