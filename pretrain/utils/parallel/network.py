"""The network interface that leads to another machine."""
import fcntl
import ipaddress
import os
import re
import socket
import struct
import sys
from pathlib import Path
from urllib.parse import urlsplit

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
IF_INET6 = Path('/proc/net/if_inet6')


def check_url(url: str) -> str:
    """The address of a meeting point, unchanged. Raises ValueError, which shows the form that is probably meant, for an address
    that PyTorch would not understand."""
    if url == 'env://' or url.startswith('env://?') or re.fullmatch('file://.+', url):
        return url
    given = re.fullmatch(r'tcp://(?:[^\s/:\[\]@]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})/?', url)
    if given and 0 < int(given[1]) < 2 ** 16:
        return url
    found = re.fullmatch(r'(?:\w*:?/+)?(?:\w+:(?=[^:]*:))?([\w.-]+|\[[0-9a-fA-F:.]+\])(?::(\w*))?/?', url)
    host, port = (found[1], found[2] or '') if found else ('HOST', '')
    port = port if port.isdecimal() and 0 < int(port) < 2 ** 16 else '29500'
    raise ValueError(f"must be tcp://HOST:PORT, as in tcp://{host}:{port}, or env:// (MASTER_ADDR and MASTER_PORT), not "
                     f"'{url}'")


def meeting_point(url: str) -> str | None:
    """The host where the processes meet: of tcp://HOST:PORT, or for env:// MASTER_ADDR. None where no host is named."""
    if url.startswith('env://'):
        return os.environ.get('MASTER_ADDR')
    return urlsplit(url).hostname if url.startswith('tcp://') else None


def own_address(host: str) -> str | None:
    """The address of this machine from which `host` is reached, or None where it can't be told. Nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return probe.getsockname()[0]
    except OSError:
        return None


def is_loopback(address: str | None) -> bool:
    """Whether only this machine can reach an address, as 127.0.1.1, which Debian gives the machine's own name."""
    return address is not None and ipaddress.ip_address(address.partition('%')[0]).is_loopback


def interface_of(address: str) -> str | None:
    """The name of the interface that has an address, or None where it can't be told."""
    if sys.platform != 'linux':
        return None
    ip = ipaddress.ip_address(address.partition('%')[0])
    for _, name in socket.if_nameindex():
        if ip in _addresses(name):
            return name
    return 'lo' if ip.is_loopback else None  # all of 127.0.0.0/8 is there


def _addresses(name: str):
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack('256s', name.encode()[:15]))
            found.append(ipaddress.IPv4Address(answer[20:24]))
        except OSError:  # it has no IPv4 address
            pass
    if IF_INET6.exists():
        for line in IF_INET6.read_text().splitlines():
            digits, *_, owner = line.split()
            if owner == name:
                found.append(ipaddress.IPv6Address(bytes.fromhex(digits)))
    return found
