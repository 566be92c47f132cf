"""Pictures out of requests: data URLs, and remote ones only where they are allowed.

A server that fetches whatever address it is given can be made to read what only it can reach. So a
remote address is looked up once, every address it stands for must be public, and the connection
goes to the very address that was checked; each redirect is checked again.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from PIL import Image
from vqrae.data import open_image

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_REDIRECTS = 3


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What a picture in a request may be."""

    max_pixels: int = 16_000_000
    """Width times height."""
    max_bytes: int = 10_000_000
    """Of a file."""
    allow_remote: bool = False
    """Fetch http and https addresses, of public hosts only."""
    seconds: float = 10.0
    """For fetching one, redirects included."""


def read_picture(url: str, limits: PictureLimits) -> Image.Image:
    """The picture at a data URL or, where allowed, at a public http(s) address.

    Raises:
        ValueError: in one line, for any other address, or what is no picture or too large.
    """
    if url.startswith("data:"):
        data = _inline(url, limits)
        name = "data URL"
    elif url.startswith(("http://", "https://")):
        if not limits.allow_remote:
            raise ValueError(
                "remote pictures are switched off on this server; send a data URL "
                "(data:image/png;base64,...)"
            )
        data = fetch(url, limits)
        name = url[:200]
    else:
        raise ValueError(
            f"cannot read a picture from {url[:40]!r}; send a data URL (data:image/png;base64,...)"
        )
    return open_image(data, name=name, max_pixels=limits.max_pixels)


def _inline(url: str, limits: PictureLimits) -> bytes:
    head = _DATA_URL.match(url)
    if head is None:
        raise ValueError("a data URL of a picture begins with data:image/TYPE;base64,")
    # Base64 is a third longer; what is too long is not decoded.
    if (len(url) - head.end()) * 3 // 4 > limits.max_bytes + 3:
        raise ValueError(f"the picture has more than {limits.max_bytes} bytes; make it smaller")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the data URL's base64 is damaged; encode the file again") from None


def fetch(url: str, limits: PictureLimits) -> bytes:
    """The body at a public http(s) address; ValueError in one line for whatever goes wrong."""
    until = time.monotonic() + limits.seconds
    for _ in range(_REDIRECTS + 1):
        answer = _get(url, limits, until)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise ValueError(f"{url[:200]!r} redirects more than {_REDIRECTS} times")


def _get(url: str, limits: PictureLimits, until: float) -> bytes | str:
    """The body, or where it has moved to."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise ValueError(f"{url[:200]!r} is not an http or https address") from None
    if not parts.hostname or parts.username or parts.password:
        raise ValueError(f"{url[:200]!r} must name a host, and no user or password")
    address = public_address(parts.hostname, port)
    connection = _Pinned(parts.hostname, port, address, parts.scheme == "https", until)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "vqrae"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return response.headers.get("Location") or ""
        if response.status != 200:
            raise ValueError(f"{url[:200]!r} answered with status {response.status}")
        return _body(response, limits, until, url)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"cannot fetch {url[:200]!r}: {error or type(error).__name__}") from None
    finally:
        connection.close()


def _body(response: http.client.HTTPResponse, limits: PictureLimits, until: float, url: str):
    body = bytearray()
    while piece := response.read1(65536):
        body += piece
        if len(body) > limits.max_bytes:
            raise ValueError(
                f"the picture at {url[:200]!r} has more than {limits.max_bytes} bytes; "
                "make it smaller"
            )
        if time.monotonic() > until:
            raise ValueError(f"{url[:200]!r} took longer than {limits.seconds} seconds")
    return bytes(body)


def public_address(host: str, port: int) -> str:
    """An address of the host; ValueError unless all it has are public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"there is no host {host[:200]!r}") from None
    addresses = [entry[4][0] for entry in found]
    for address in addresses:
        ip = ipaddress.ip_address(address.split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if not ip.is_global or ip.is_multicast:
            raise ValueError(f"the host {host[:200]!r} is not a public one")
    return addresses[0]


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that was checked, whatever the name stands for meanwhile."""

    def __init__(self, host: str, port: int, address: str, tls: bool, until: float):
        super().__init__(host, port, timeout=max(0.1, until - time.monotonic()))
        self._address, self._tls = address, tls
        if tls:
            self.default_port = 443

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
