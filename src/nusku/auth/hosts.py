"""By which names browsers may find a service that believes everybody.

A page's own name can be led to this machine after the page was loaded (DNS rebinding), and what it
asks for then is of its own origin, so that the browser lets it.
"""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from nusku.config import Settings

_PORT = re.compile(r":\d+\Z")


class Hosts:
    """What this service is called by those who mean it."""

    def __init__(self, settings: Settings) -> None:
        public = urlsplit(settings.public_url).hostname or ""
        self._names = {"localhost", settings.host.lower(), public}

    def ours(self, host: bytes) -> bool:
        """Whether this header ``Host`` has one of our names, or an address: nobody else can give
        those a meaning.
        """
        name = _PORT.sub("", host.decode("latin-1").lower()).strip("[]")
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
