"""A small ext4 file system in a file, mounted through a loop device, whose power can be cut."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

# From <linux/fs.h>; the flag says: do not write the journal out first.
FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2


class Volume:
    """A context manager: made and mounted on entry, unmounted and deleted on exit."""

    def __init__(self, folder: Path, mib: int = 128) -> None:
        self._image = folder / "volume.img"
        self._mib = mib
        self.path = folder / "volume"

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(self._mib << 20)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self.mount()
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.is_mount():
            self.unmount()
        self._image.unlink()

    def mount(self, *options: str) -> None:
        _run("mount", "-o", ",".join(("loop", *options)), str(self._image), str(self.path))

    def unmount(self) -> None:
        for patience in range(50):
            try:
                _run("umount", str(self.path))
            except subprocess.CalledProcessError:
                if patience == 49:
                    _run("umount", "-l", str(self.path))
                time.sleep(0.05)
            else:
                return

    def cut(self) -> None:
        """Everything that was not yet on the disk is gone, and every later write fails.

        Freeze the writers first: otherwise an fsync can come back as a success during the cut.
        """
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def free(self) -> int:
        """Bytes that are free."""
        return shutil.disk_usage(self.path).free


@functools.cache
def why_not() -> str:
    """Why this machine cannot mount volumes and cut their power; empty if it can."""
    if os.geteuid() != 0:
        return "needs root to mount file systems"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if not _found(name)]
    if missing:
        return f"needs {', '.join(missing)}"
    try:
        with tempfile.TemporaryDirectory() as folder, Volume(Path(folder), mib=16) as volume:
            (volume.path / "file").write_bytes(b"x")
            volume.cut()
            volume.unmount()
            volume.mount()
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return f"cannot mount a loop device and cut its power: {detail!r}"
    return ""


def _found(name: str) -> bool:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _run(*command: str) -> None:
    env = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run(command, check=True, capture_output=True, env=env)
