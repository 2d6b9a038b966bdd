"""A server on this machine that offers the files of a folder, whole or cut off."""

import functools
import http.server
import threading


class ModelServer:
    """``url`` of the files in ``folder``; ``cut`` breaks off each answer after so many bytes; ``asked`` lists paths."""

    def __init__(self, folder):
        self.cut, self.asked = None, []
        handler = functools.partial(_Handler, self, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, owner, *arguments, **options):
        self.owner = owner
        super().__init__(*arguments, **options)

    def do_GET(self):
        self.owner.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(self.owner.cut))  # None: all of it, as the header says

    def log_message(self, *arguments):
        pass
