"""Settings, and how they are read, checked and shown.

A setting has one flat name. It is taken from, weakest first: its default, the TOML file,
``NUSKU_<NAME>`` in the environment (lists comma-separated), the command line. Whatever is wrong is
reported in one go, each problem naming the setting, its value, where that came from and what is
allowed.
"""

from nusku.config.loading import FILE_VARIABLE, KEY_VARIABLE, ConfigError, load
from nusku.config.settings import Settings
from nusku.config.showing import as_toml, document, masked

__all__ = [
    "FILE_VARIABLE",
    "KEY_VARIABLE",
    "ConfigError",
    "Settings",
    "as_toml",
    "document",
    "load",
    "masked",
]
