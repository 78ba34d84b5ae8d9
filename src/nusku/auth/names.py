"""Which projects, users and roles credentials may name."""

from nusku.model import PROJECT_MAX

NAME_MAX = 256


def legal_project(text: str) -> bool:
    """Whether it can be a project: what a header can carry, since signed URLs come with it there."""
    return _plain(text, PROJECT_MAX) and all(character < "\u0100" for character in text)


def legal_name(text: str) -> bool:
    """Whether it can be a user or a role. Lists of roles are apart by commas."""
    return _plain(text, NAME_MAX) and "," not in text


def _plain(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isprintable() and text == text.strip()
