"""Who sends to which kind of subscriber: the one table of schemes."""

from nusku.addresses import Addresses
from nusku.config import Settings
from nusku.notify.mailto import MailSender
from nusku.notify.outcome import Sender
from nusku.notify.webhook import Tokens, WebhookSender


def build(settings: Settings, addresses: Addresses, trusts: Tokens | None) -> dict[str, Sender]:
    """Make all senders, by the schemes of subscribers; inside the event loop they are for.

    Without ``trusts`` deliveries to ``trust+…`` fail for want of a token. Some schemes share a
    sender: closing each of the values is harmless.
    """
    mail = MailSender(settings)  # first: it opens nothing, and may refuse its templates
    webhook = WebhookSender(settings, addresses, trusts)
    return {
        "http": webhook,
        "https": webhook,
        "trust+http": webhook,
        "trust+https": webhook,
        "mailto": mail,
    }
