"""nusku: a message queue service that speaks the Zaqar v2 API."""

from importlib.metadata import version

__version__ = version("nusku")
