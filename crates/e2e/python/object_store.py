"""An object store with one object: moto, which keeps it, behind what moto leaves out.

object_store.py BUCKET KEY FILE CERTIFICATE REGION ACCESS_KEY SECRET_KEY [TOKEN]

Moto takes any signature. So every GET is signed again here, by AWS' own library, and refused as AWS refuses it where that
gives another signature. Prints the port when it answers; ends when its standard input does.
"""

import ssl
import sys
import threading
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl

import boto3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET, KEY, FILE, CERTIFICATE, REGION, *SECRETS = sys.argv[1:]
CREDENTIALS = Credentials(*SECRETS)


def wrong(environ):
    """Why a request is refused: the status and the code; None if it is not."""
    query = dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    signature = query.get("X-Amz-Signature")
    if signature is None:
        return "403 Forbidden", "AccessDenied"
    key, date, region, *_ = query["X-Amz-Credential"].split("/")
    if key != CREDENTIALS.access_key:
        return "403 Forbidden", "InvalidAccessKeyId"
    if region != REGION:
        return "400 Bad Request", "AuthorizationQueryParametersError"
    signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    expires = int(query["X-Amz-Expires"])
    if datetime.now(timezone.utc) > signed_at + timedelta(seconds=expires):
        return "403 Forbidden", "AccessDenied"
    rest = environ["QUERY_STRING"].replace(f"&X-Amz-Signature={signature}", "")
    path = environ["RAW_URI"].partition("?")[0]
    request = AWSRequest("GET", url=f"https://{environ['HTTP_HOST']}{path}?{rest}")
    request.context["timestamp"] = query["X-Amz-Date"]
    auth = S3SigV4QueryAuth(CREDENTIALS, "s3", REGION, expires=expires)
    to_sign = auth.string_to_sign(request, auth.canonical_request(request))
    if auth.signature(to_sign, request) != signature:
        return "403 Forbidden", "SignatureDoesNotMatch"
    return None


class Signed:
    """Passes on what is signed rightly."""

    def __init__(self, application):
        self.application = application

    def __call__(self, environ, start_response):
        refused = wrong(environ) if environ["REQUEST_METHOD"] == "GET" else None
        if refused is None:
            return self.application(environ, start_response)
        status, code = refused
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Secret>{CREDENTIALS.secret_key}</Secret></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def main():
    application = Signed(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet, ssl_context=tls())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store = boto3.client(
        "s3",
        endpoint_url=f"https://127.0.0.1:{server.port}",
        verify=False,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS.access_key,
        aws_secret_access_key=CREDENTIALS.secret_key,
        aws_session_token=CREDENTIALS.token,
        config=Config(s3={"addressing_style": "path"}),
    )
    store.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    with open(FILE, "rb") as content:
        store.put_object(Bucket=BUCKET, Key=KEY, Body=content)
    print(server.port, flush=True)
    sys.stdin.read()


main()
