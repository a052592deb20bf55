"""A local server in place of the one that CIFAR-10 is downloaded from."""

import contextlib
import http.server
import socket
import threading
import urllib.request

from jaxresnet.data import cifar10_download


@contextlib.contextmanager
def archive_server(monkeypatch):
    """Yields serve(answer): makes ARCHIVE_URL a local one where `answer(handler)` is what happens at a GET.

    serve returns the list of requests, which grows as they come.
    """
    servers = []

    def start(answer):
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                answer(self)

            def log_message(self, *args):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/cifar-10-binary.tar.gz"
        monkeypatch.setattr(cifar10_download, "ARCHIVE_URL", url)
        return requests

    # A proxy in the environment must not come between; urllib keeps the opener that it made first.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
    try:
        yield start
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def send(handler, body, length=None, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def unused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
