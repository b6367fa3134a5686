"""A small server that speaks the chat-completions interface, for tests; bound to this machine."""

import contextlib
import http.server
import json
import threading


class Server(http.server.ThreadingHTTPServer):
    """Answers as told and keeps what it was asked.

    Attributes:
      asked: bodies and headers of the requests.
      script: what to do with the coming requests, one entry each: a status code, "drop" (close the
        connection), "garbage" (no JSON), "slow" (a byte now and then); then it answers.
      reply: makes the text of an answer from the body of a request.
    """

    daemon_threads = True

    def __init__(self, reply):
        """Takes any free port."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.script, self.reply = [], [], reply
        self.stopped = threading.Event()

    @property
    def url(self):
        """The address that an endpoint takes."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, dict(self.headers)))
        what = self.server.script.pop(0) if self.server.script else 200
        if what == "drop":
            self.close_connection = True
            return
        if what == "slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not self.server.stopped.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()
            return
        message = {"role": "assistant", "content": self.server.reply(body)}
        data = json.dumps({"choices": [{"message": message}]}).encode()
        if what == "garbage":
            what, data = 200, b"<html>"
        self.send_response(what)
        if what == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Says nothing."""


@contextlib.contextmanager
def serving(reply):
    """A server for as long as the context lasts."""
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join(5)
        server.server_close()
