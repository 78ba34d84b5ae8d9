"""What a ``postgresql://`` URI says: servers, and the schema that holds our tables.

Beyond what PostgreSQL's own URIs have, ``?schema=name`` puts a store beside others in one database.
"""

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlunsplit

from nusku.config import masked
from nusku.errors import StoreRefused
from nusku.storage.uri import split

SCHEMA = "nusku"


class Address(NamedTuple):
    """Where a store is: a data source name for each of its servers, of which one is the primary.

    ``shown`` is the URI as people may see it.
    """

    servers: tuple[str, ...]
    schema: str
    shown: str


def parse(uri: str) -> Address:
    """Raises StoreRefused for what is no such URI."""
    parts = split(uri)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    schema = query.pop("schema", SCHEMA)
    query.pop("target_session_attrs", None)  # which one is the primary we find out ourselves
    shown = masked(uri)
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,47}", schema):
        raise StoreRefused(
            f"store {shown}: a schema's name has up to 48 small letters, digits and underscores"
        )
    login = f"{parts.login}@" if parts.login else ""
    servers = tuple(
        urlunsplit(("postgresql", f"{login}{host}", parts.path, urlencode(query), ""))
        for host in parts.hosts.split(",")
    )
    return Address(servers, schema, shown)
