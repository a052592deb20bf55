"""A local server in place of the one that CIFAR-10 is downloaded from."""

import contextlib
import http.server
import threading

from jaxresnet.data import tfds


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        self.server.answer(self, self.server.content)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def archive_server(monkeypatch, content):
    """The archive, of these bytes, now comes from a local server. Yields it: `requests` are the paths that it was asked
    for, and `answer(handler, content)`, which a test may replace, is what a GET does."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.content, server.answer = [], content, send
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(tfds, "ARCHIVE_FOLDER", f"http://127.0.0.1:{server.server_port}/")
        try:
            yield server
        finally:
            server.shutdown()


def send(handler, body, length=None, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
