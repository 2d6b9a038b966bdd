"""A server on this machine that offers the files of a folder, whole or cut off."""

import functools
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import requests


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


class Detour(requests.adapters.HTTPAdapter):
    """Sends requests for any host to the folder of its name on a `ModelServer`; a DOI leads to a record."""

    def __init__(self, server):
        self.server = server
        super().__init__()

    def send(self, request, **options):
        asked, parts = request.url, urlsplit(request.url)
        if parts.netloc == "doi.org":
            number = parts.path.rpartition(".")[2]
            found = requests.Response()
            found.status_code, found.url, found.request = 200, f"https://zenodo.org/records/{number}", request
            return found
        request.url = f"{self.server}/{parts.netloc}{parts.path}"
        answer = super().send(request, **options)
        answer.url = asked
        return answer


def zenodo_record(www, number, model):
    """Lay out a record as Zenodo serves it: what it holds, and the two files of a model."""
    files = Path(www) / "zenodo.org" / "records" / str(number) / "files"
    files.mkdir(parents=True)
    said = []
    for file in Path(model).iterdir():
        (files / file.name).write_bytes(file.read_bytes())
        link = f"https://zenodo.org/records/{number}/files/{file.name}"
        said.append({"key": file.name, "links": {"self": link}})
    api = Path(www) / "zenodo.org" / "api" / "records"
    api.mkdir(parents=True)
    (api / str(number)).write_text(json.dumps({"id": number, "files": said}))
    return files
