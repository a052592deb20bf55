"""A local server in place of the one that CIFAR-10 is downloaded from."""

import contextlib
import http.server
import threading

from jaxresnet.data import tfds


@contextlib.contextmanager
def archive_server(monkeypatch):
    """Yields serve(answer): the archive now comes from a local server, where `answer(handler)` is what a GET does.

    serve returns the list of requested paths, which grows as they come.
    """
    servers = []

    def serve(answer):
        requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.path)
                answer(self)

            def log_message(self, *args):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(tfds, "ARCHIVE_FOLDER", f"http://127.0.0.1:{servers[-1].server_port}/")
        return requests

    try:
        yield serve
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def send(handler, body, length=None, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
