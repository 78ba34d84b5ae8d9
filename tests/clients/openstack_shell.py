"""The `openstack` command, many times in one process, since starting it takes seconds.

Reads lines of JSON, each the arguments of one, and answers with a line: exit status, stdout and stderr.
What is run is the very function that the command is.
"""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout


def main() -> None:
    from openstackclient import shell

    for line in sys.stdin:
        arguments = json.loads(line)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status: object = shell.main(arguments)
            except SystemExit as end:
                status = end.code
        print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)


main()
