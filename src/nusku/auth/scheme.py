"""What a kind of authentication is."""

from typing import Protocol

from nusku.model import Caller


class Scheme(Protocol):
    """One way to prove who one is by a token, which may be a key.

    Names of schemes are those of the setting ``auth``. No token may be part of an error or of a
    line in a log, and none is kept but as a hash.
    """

    @property
    def challenge(self) -> str:
        """What ``WWW-Authenticate`` says of it."""
        ...

    def known(self, token: str) -> Caller | None:
        """Whose token this is, if that can be said at once and still holds. Never waits."""
        ...

    async def caller(self, token: str) -> Caller | None:
        """Whose token this is; None if it is not one of this scheme's.

        Raises Refused if it is one and is not accepted, Unavailable where that cannot be found out
        now.
        """
        ...

    async def aclose(self) -> None:
        """Give up what is under way, and its connections."""
        ...


class Refused(Exception):
    """A token is not accepted. The text says why, for logs."""
