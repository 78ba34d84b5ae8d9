"""Fuzz one target, guided by what its examples reach: ``python -m tests.fuzz TARGET --seconds 600``.

Needs the package atheris, which `make fuzz` installs. What is interesting is kept in
``fuzz/corpus/TARGET`` and gone on from next time; what fails is printed, with the example as
Hypothesis shows it, and kept in ``fuzz/failures``.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["nusku", "jwt"]):
    from nusku import server
    from nusku.config import Settings
    from tests.fuzz.line import Line
    from tests.fuzz.targets import TARGETS

from hypothesis import HealthCheck, given, settings

FOLDER = Path("fuzz").absolute()


def serve(folder: Path) -> tuple[str, int]:
    """Run a server in a thread of this process, for as long as it lives; where it listens."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    options = Settings(
        store=f"sqlite:///{folder / 'nusku.db'}",
        log_level="error",
        header_timeout=1.0,
        body_timeout=1.0,
        encryption_keys=("fuzz-0123456789abcdef-0123456789abcdef",),
    )
    threading.Thread(
        target=server._run_one, args=(options, [listener], None), daemon=True, name="server"
    ).start()
    host, port = listener.getsockname()[:2]
    return host, port


def plant(corpus: Path) -> None:
    """Something to begin with: of short examples Hypothesis could not make anything."""
    rng = random.Random(1)
    for number, length in enumerate((64, 256, 1024, 4096) * 10):
        (corpus / f"seed-{number}").write_bytes(rng.randbytes(length))


def main() -> None:
    by_name = {target.name: target for target in TARGETS}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*by_name])
    parser.add_argument("--seconds", type=int, default=300, help="how long; 0 for no end")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only this failure")
    asked = parser.parse_args()
    target = by_name[asked.target]
    corpus, failures = FOLDER / "corpus" / target.name, FOLDER / "failures"
    for path in (corpus, failures):
        path.mkdir(parents=True, exist_ok=True)
    tried = asked.again.absolute() if asked.again else corpus
    if not any(corpus.iterdir()):
        plant(corpus)
    with tempfile.TemporaryDirectory(prefix="nusku-fuzz-") as folder:
        os.chdir(folder)
        line = Line(serve(Path(folder)) if target.over_http else None)

        @settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(target.tries)
        def check(value: Any) -> None:
            try:
                target.check(value, line)
            except Exception:
                print(f"failed with {value!r}", file=sys.stderr)
                raise

        atheris.Setup(
            [
                sys.argv[0],
                str(tried),
                f"-artifact_prefix={failures}/{target.name}-",
                f"-max_total_time={asked.seconds}",
                "-max_len=4096",
                "-len_control=0",
                "-timeout=30",
                "-rss_limit_mb=2048",
            ],
            check.hypothesis.fuzz_one_input,  # type: ignore[attr-defined] # Hypothesis puts it there
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
