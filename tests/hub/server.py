"""A Hub on the loopback: answers what huggingface_hub asks of it to push and to load a model.

The paths and their answers are those that huggingface_hub 2.4 calls and reads (`hf_api.py`, `_commit_api.py`,
`lfs.py`, `file_download.py`). Large files come from another host name, as they do from the real one.
"""

import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from hub.store import LARGE, Refused, Repository


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = []


def route(method, pattern):
    """Call the function on requests of this method and path."""

    def add(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


class Hub(ThreadingHTTPServer):
    """Keeps everything in memory.

    Attributes:
        repositories: by name.
        tokens: {token: (user, may write)}.
        part_size: size in bytes of the parts in which large files are sent; None sends them whole.
        parts: of large files, until the last is there, by the hash of their contents.
        received: bytes of large files that came in, by the same hash, also where the upload broke off.
        requests: (method, path) of all that was asked.
        sent: all bodies that came in, except large files.
        down: whether every connection is closed without an answer.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.tokens, self.parts, self.received = {}, {}, {}, {}
        self.requests, self.sent, self.faults, self.cuts = [], [], [], {}
        self.part_size, self.down = None, False
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.other_host = f"http://localhost:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that hangs up is what some tests are about."""

    def share(self, name, folder, more=()):
        """A public repository with the files of a folder, and more operations; gives the commit."""
        repository = self.repositories[name] = Repository(private=False)
        operations = []
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            oid = hashlib.sha256(data).hexdigest()
            large = path.name.endswith(LARGE)
            operations.append(("lfsFile", path.name, oid) if large else ("file", path.name, data))
            repository.blobs.update({oid: data} if large else {})
        return repository.commit("main", "shared", [*operations, *more])

    def on(self, method, path, happens, times=None):
        """Call `happens` with the handler of every such request before it is answered; `times` None for ever."""
        left = [times]

        def rule(handler):
            if handler.command == method and re.search(path, handler.path) and left[0] != 0:
                left[0] = None if left[0] is None else left[0] - 1
                happens(handler)

        self.faults.append(rule)

    def fail(self, method, path, status, times=None):
        """Answer such requests with an error."""

        def refuse(_):
            raise Refused(status, "no")

        self.on(method, path, refuse, times)

    def lose_answer(self, method, path):
        """Do once what is asked, and answer with an error all the same."""

        def refuse(handler):
            handler.called()
            raise Refused(500, "lost")

        self.on(method, path, refuse, times=1)

    def cut(self, oid, after, happens=None):
        """Hang up once on the upload of a large file after so many bytes; `happens` is called right before."""
        self.cuts[oid] = (after, happens)


class Handler(BaseHTTPRequestHandler):
    """One request: faults, then the route, then the answer as JSON or bytes."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do(self):
        self.read = False
        self.server.requests.append((self.command, self.path))
        try:
            if self.server.down:
                self.hang_up()
            for rule in list(self.server.faults):
                rule(self)
            self.answer_with(*self.called())
        except Refused as refused:
            headers = {"X-Error-Message": str(refused), **({"X-Error-Code": refused.code} if refused.code else {})}
            self.answer_with({"error": str(refused)}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def called(self):
        path = urlsplit(self.path).path
        for method, pattern, function in ROUTES:
            found = pattern.fullmatch(path)
            if found and self.command in method:
                answer = function(self, **{key: unquote(value) for key, value in found.groupdict().items() if value})
                return answer if isinstance(answer, tuple) else (answer,)
        raise Refused(404, f"no such path: {path}")

    def answer_with(self, body, status=200, headers=None):
        if not self.read:
            self.body()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self, oid=None):
        """What the client sends; of a large file it is counted, and perhaps cut off."""
        self.read = True
        left = int(self.headers.get("Content-Length", 0))
        pieces = []
        while left and (piece := self.rfile.read1(min(left, 1 << 16))):
            left -= len(piece)
            pieces.append(piece)
            if oid:
                self.server.received[oid] = self.server.received.get(oid, 0) + len(piece)
            if oid in self.server.cuts and self.server.received[oid] > self.server.cuts[oid][0]:
                self.hang_up(self.server.cuts.pop(oid)[1])
        return b"".join(pieces)

    def hang_up(self, happens=None):
        if happens:
            happens()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def json(self):
        body = self.body()
        self.server.sent.append(body)
        return json.loads(body)

    def user(self):
        """(name, may write) of who asks; (None, False) of nobody. Raises Refused for a token that is none."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.server.tokens.get(token, (None, False))

    def writer(self, owner):
        name, may_write = self.user()
        if name is None:
            raise Refused(401, "Invalid username or password.")
        if name != owner or not may_write:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def repository(self, repo, write=False):
        owner = repo.partition("/")[0]
        found = self.server.repositories.get(repo)
        name, _ = self.user()
        if found is None or (found.private and name != owner):
            raise Refused(401 if name is None else 404, "Repository not found", "RepoNotFound")
        if write:
            self.writer(owner)
        return found

    def log_message(self, *_):
        pass
