"""The network interface by which this machine reaches the first one, for gloo, which looks for none itself."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from mft_train.engine.world import World

VARIABLE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # of Linux: the IPv4 address of an interface
NAME_BYTES, REQUEST_BYTES, ADDRESS_OFFSET = 16, 40, 20  # of its struct ifreq


def announce_interface(world: World, environment: MutableMapping[str, str]) -> None:
    """Tells gloo the interface that leads to MASTER_ADDR, where there are several machines and nobody has told it.

    Left alone, gloo takes the address that this machine's own name has, often one that others cannot reach.
    """
    if world.num_nodes > 1 and VARIABLE not in environment:
        name = interface_towards(environment["MASTER_ADDR"])
        if name:
            environment[VARIABLE] = name


def interface_towards(host: str) -> str | None:
    """The interface from which this machine sends to `host`; None if that is unknown, or leads nowhere else."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: the kernel only chooses the way
            own = probe.getsockname()[0]
            if ipaddress.ip_address(own).is_loopback:  # a name for this machine itself, in its own list of hosts
                return None
            return next((name for _, name in socket.if_nameindex() if address_of(name, probe) == own), None)
    except OSError:
        return None


def address_of(interface: str, probe: socket.socket) -> str | None:
    """The IPv4 address of an interface, asked through any socket; None if it has none."""
    request = struct.pack(f"{REQUEST_BYTES}s", interface.encode()[: NAME_BYTES - 1])
    try:
        answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
    except OSError:
        return None
    return socket.inet_ntoa(answer[ADDRESS_OFFSET : ADDRESS_OFFSET + 4])
