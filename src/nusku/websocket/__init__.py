"""Zaqar's v2 API over WebSocket."""

from nusku.websocket.handshake import Sockets

__all__ = ["Sockets"]
