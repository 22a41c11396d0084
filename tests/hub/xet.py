"""How large files come to the Hub where hf_xet is installed: in chunks, and a record of which files they make.

Formats after the Xet protocol specification (https://huggingface.co/docs/xet): a xorb is a row of compressed chunks; a
shard names, for every file, the runs of chunks that it is made of, and its SHA-256.
"""

import hashlib
import struct
import time

import pyarrow
from hub.server import REPO, route
from hub.store import Refused


ENTRY = 48
LAST, VERIFIED, KNOWN_BY_SHA256 = b"\xff" * 32, 1 << 31, 1 << 30
GROUPED = 2


@route("GET", rf"/api/models/{REPO}/xet-write-token/(?P<revision>[^/]+)")
def write_token(handler, repo, revision):
    handler.repository(repo, write=True).at(revision)
    info = {"casUrl": f"{handler.server.url}/xet/{repo}", "accessToken": "xet", "exp": int(time.time()) + 3600}
    headers = {"Cas-Url": info["casUrl"], "Access-Token": info["accessToken"], "Token-Expiration": info["exp"]}
    return info, 200, {f"X-Xet-{name}": value for name, value in headers.items()}


@route("POST", rf"/xet/{REPO}/v1/xorbs/default/(?P<xorb>[0-9a-f]{{64}})")
def put_xorb(handler, repo, xorb):
    data = handler.body(xorb)
    handler.server.parts[raw(xorb)] = list(chunks(data))
    return {"was_inserted": True}


@route("POST", rf"/xet/{REPO}/v1/shards")
def put_shard(handler, repo):
    blobs = handler.server.repositories[repo].blobs
    for oid, runs in files(handler.body()):
        data = b"".join(chunk for xorb, start, end in runs for chunk in handler.server.parts[xorb][start:end])
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "the chunks are not the file that was announced")
        blobs[oid] = data
    return {"result": 1}


def raw(text):
    """The bytes of a hash, which is written as four little-endian numbers."""
    return b"".join(bytes.fromhex(text[at : at + 16])[::-1] for at in range(0, 64, 16))


def chunks(xorb):
    """The chunks of a xorb; after them comes a list of what they are, which is not needed."""
    at = 0
    while at < len(xorb) and xorb[at] == 0:
        packed, scheme, size = (int.from_bytes(xorb[at + a : at + b], "little") for a, b in ((1, 4), (4, 5), (5, 8)))
        data, at = xorb[at + 8 : at + 8 + packed], at + 8 + packed
        data = pyarrow.Codec("lz4").decompress(data, size, asbytes=True) if scheme else data
        yield ungrouped(data) if scheme == GROUPED else data


def ungrouped(data):
    """Undo the sorting of bytes by their place in a number of four."""
    whole, at = bytearray(len(data)), 0
    for place in range(4):
        count = len(range(place, len(data), 4))
        whole[place::4], at = data[at : at + count], at + count
    return bytes(whole)


def files(shard):
    """(SHA-256, runs of chunks as (xorb, start, end)) of every file of a shard."""
    at = ENTRY
    while (name := shard[at : at + 32]) != LAST and name:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        entries = [at + ENTRY * (1 + number) for number in range(count)]
        runs = [(shard[entry : entry + 32], *struct.unpack_from("<II", shard, entry + 40)) for entry in entries]
        at += ENTRY * (1 + count * (2 if flags & VERIFIED else 1))
        if flags & KNOWN_BY_SHA256:
            yield b"".join(shard[at + a : at + a + 8][::-1] for a in range(0, 32, 8)).hex(), runs
            at += ENTRY
