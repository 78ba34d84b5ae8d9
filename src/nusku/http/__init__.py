"""Zaqar's v2 API over HTTP."""

from nusku.http.app import build
from nusku.http.openapi import document
from nusku.http.page import page
from nusku.http.protocol import protocol, sweep_for_ever
from nusku.http.system import SystemHandlers

__all__ = ["SystemHandlers", "build", "document", "page", "protocol", "sweep_for_ever"]
