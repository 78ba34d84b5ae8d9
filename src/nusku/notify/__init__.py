"""Telling subscribers: senders, by the scheme of the subscriber, and who drives them."""

from nusku.notify.outcome import Outcome, Sender
from nusku.notify.senders import build
from nusku.notify.worker import Notifier

__all__ = ["Notifier", "Outcome", "Sender", "build"]
