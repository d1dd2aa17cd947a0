"""A web server on this machine, also in the place of drive.google.com."""
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

DRIVE_ID = '1pxhY5vsLwXuz6UHZVUKhtb7EJdCg2kuH'

# What Drive answers for a large file, and once too many people have fetched it. gdown reads both line by line.
CONFIRM_PAGE = (
    b'<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>'
    b'<form id="download-form" action="https://drive.google.com/download" method="get">'
    b'<input type="hidden" name="id" value="' + DRIVE_ID.encode() + b'">'
    b'<input type="hidden" name="confirm" value="t"></form></body></html>')
QUOTA_PAGE = (
    b'<!DOCTYPE html><html><head><title>Google Drive</title></head><body>'
    b'<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>'
    b'<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try accessing '
    b'the file again later.</p></body></html>')

# For a server that claims to be drive.google.com. Made for this test; nothing trusts it.
DRIVE_PEM = '''-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg6MlCGYtvCtsHxrYN
wP1uTSQ/oUp5fakhpHN3gOHaxUuhRANCAAQtLrDVwwgzRb4LUBJ3llPcEBJltW3r
ad+wyJ7rhghKlfFC/pHYuhaYbG5Nx4J9KoRbrTBokYlqMW3YpVBaESUr
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBhjCCASygAwIBAgIBATAKBggqhkjOPQQDAjAbMRkwFwYDVQQDDBBkcml2ZS5n
b29nbGUuY29tMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAbMRkw
FwYDVQQDDBBkcml2ZS5nb29nbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAELS6w1cMIM0W+C1ASd5ZT3BASZbVt62nfsMie64YISpXxQv6R2LoWmGxuTceC
fSqEW60waJGJajFt2KVQWhElK6NfMF0wGwYDVR0RBBQwEoIQZHJpdmUuZ29vZ2xl
LmNvbTAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4EFgQU
KpzyKKqvIwrweathwMxxIpygsUkwCgYIKoZIzj0EAwIDSAAwRQIgCOJEuyGTtUpb
SXUrno7B2InGL9SlxqCQJEqgXYTxy88CIQDbQYWU4cXaisdBckMcDmTSLu2shC+9
tGpK5+L9U4ifMw==
-----END CERTIFICATE-----
'''


class Handler(BaseHTTPRequestHandler):
    """Answers with the server's `reply`; as a proxy, it is drive.google.com itself."""

    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.pem)
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile('rb'), self.connection.makefile('wb')
        self.close_connection = False

    def do_GET(self):
        self.server.requests.append(self.path)
        self.server.reply(self)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(name, '127.0.0.1')
    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.url = f'http://127.0.0.1:{server.server_port}/PASCAL_VOC.tgz'
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def drive(server, monkeypatch, tmp_path_factory):
    """The same server as drive.google.com: requests to it go through a proxy, with TLS."""
    server.pem = tmp_path_factory.mktemp('drive') / 'drive.pem'
    server.pem.write_text(DRIVE_PEM)
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(server.pem))
    for name in ('HTTPS_PROXY', 'https_proxy'):
        monkeypatch.setenv(name, f'http://127.0.0.1:{server.server_port}')
    return server


def send(body, status=200, kind='application/x-gzip', length=None, **headers):
    """A reply: `length` announces another Content-Length than the body has."""
    def reply(handler):
        handler.send_response(status)
        handler.send_header('Content-Type', kind)
        handler.send_header('Content-Length', str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace('_', '-'), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.wfile.flush()
        handler.close_connection = True
    return reply
