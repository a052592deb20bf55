"""A pseudo-terminal, and what stands on it."""

import os
import re
import threading


class Terminal:
    """What is written into `file` is gathered, as the bytes that a terminal would get."""

    def __init__(self):
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._received = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                return
            if not data:
                return
            self._received += data

    def text(self):
        """Everything so far, once the terminal is closed."""
        if not self.file.closed:
            self.file.close()
            self._reader.join()
            os.close(self._master)
        return self._received.decode()


def frames(text):
    """Each picture of the live line, and each other line, in the order of drawing."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [frame.strip() for frame in re.split(r"[\r\n]+", plain) if frame.strip()]
