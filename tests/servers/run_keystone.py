"""What a Keystone of the tests runs: ``<its own python> run_keystone.py FOLDER PORT PASSWORD``.

It has the domain Default, the user admin with that password, and the project admin, in which that
user is an admin; all else is made by requests. Tables are made at once and not by all migrations
since the beginning of time, which would take ten times as long.
"""

import os
import sys
from base64 import urlsafe_b64encode
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

CONFIGURATION = """\
[DEFAULT]
public_endpoint = http://127.0.0.1:{port}/
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[fernet_receipts]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
[identity]
password_hash_rounds = 4
"""


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's
        pass


def main() -> None:
    folder, port, password = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    del sys.argv[1:]  # it would read them, too
    file = folder / "keystone.conf"
    file.write_text(CONFIGURATION.format(folder=folder, port=port))
    os.environ["OS_KEYSTONE_CONFIG_FILES"] = str(file)
    for name in ("fernet", "credential"):
        (folder / name).mkdir(mode=0o700)
        for number in ("0", "1"):
            (folder / name / number).write_bytes(urlsafe_b64encode(os.urandom(32)))

    from keystone.cmd.bootstrap import Bootstrapper
    from keystone.common import sql
    from keystone.server import backends, wsgi

    application = wsgi.initialize_public_application()
    with sql.session_for_write() as session:
        sql.ModelBase.metadata.create_all(session.get_bind())
    backends.load_backends = dict  # they are loaded, which can be done once
    bootstrapper = Bootstrapper()
    bootstrapper.admin_username = bootstrapper.project_name = bootstrapper.admin_role_name = "admin"
    bootstrapper.admin_password = password
    bootstrapper.service_name, bootstrapper.region_id = "keystone", "here"
    url = f"http://127.0.0.1:{port}/v3"
    bootstrapper.public_url = bootstrapper.internal_url = bootstrapper.admin_url = url
    bootstrapper.bootstrap()

    with make_server("127.0.0.1", port, application, Server, Quiet) as server:
        server.serve_forever()


main()
