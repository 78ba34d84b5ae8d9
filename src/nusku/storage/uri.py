"""The parts of a store's URI.

The standard library's splitter knows one host, and newer ones refuse several with an
``[address]`` among them.
"""

import re
from typing import NamedTuple

_FORM = re.compile(  # RFC 3986, appendix B, with a scheme that must be there
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"((?P<login>[^/?#]*)@)?(?P<hosts>[^/?#]*)"
    r"(?P<path>[^?#]*)(\?(?P<query>[^#]*))?(#(?P<fragment>.*))?",
    re.IGNORECASE | re.DOTALL,
)


class StoreUri(NamedTuple):
    """The parts as they are written, but for the scheme, which is in small letters.

    ``login`` is what stands before the ``@``, ``hosts`` a list apart by commas; both may be empty.
    """

    scheme: str
    login: str = ""
    hosts: str = ""
    path: str = ""
    query: str = ""
    fragment: str = ""


def split(uri: str) -> StoreUri:
    """What is no URI with ``://`` has no scheme either."""
    form = _FORM.fullmatch(uri)
    if form is None:
        return StoreUri("")
    parts = {name: part or "" for name, part in form.groupdict().items()}
    return StoreUri(**{**parts, "scheme": parts["scheme"].lower()})
