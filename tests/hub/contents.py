"""How files come to the Hub and from it: upload modes, large files, commits, downloads."""

import base64
import hashlib
import json
import re

from hub.server import REPO, route
from hub.store import LARGE, Refused


@route("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(handler, repo, revision):
    there = handler.repository(repo, write=True).at(revision).files
    modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in handler.json()["files"]}
    oids = {path: there[path].oid if path in there else None for path in modes}
    return {
        "files": [
            {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oids[path]}
            for path, mode in modes.items()
        ]
    }


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def lfs_batch(handler, repo):
    blobs = handler.repository(repo, write=True).blobs
    objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in handler.json()["objects"]]
    for wanted in objects:
        if wanted["oid"] not in blobs:
            home = f"{handler.server.other_host}/large/{repo}/{wanted['oid']}"
            wanted["actions"] = {"upload": upload_action(home, wanted["size"], handler.server.part_size)}
    return {"transfer": "basic", "objects": objects}


def upload_action(home, size, part_size):
    if part_size is None or size <= part_size:
        return {"href": home}
    parts = {str(number + 1): f"{home}/{number + 1}" for number in range(-(-size // part_size))}
    return {"href": home, "header": {"chunk_size": str(part_size), **parts}}


@route("PUT", rf"/large/{REPO}/(?P<oid>[0-9a-f]{{64}})")
def put_whole(handler, repo, oid):
    return keep(handler, repo, oid, handler.body(oid))


@route("PUT", rf"/large/{REPO}/(?P<oid>[0-9a-f]{{64}})/(?P<number>\d+)")
def put_part(handler, repo, oid, number):
    data = handler.body(oid)
    handler.server.parts.setdefault(oid, {})[int(number)] = data
    return b"", 200, {"ETag": hashlib.md5(data).hexdigest()}


@route("POST", rf"/large/{REPO}/(?P<oid>[0-9a-f]{{64}})")
def complete(handler, repo, oid):
    parts = handler.server.parts.pop(oid)
    said = [(part["partNumber"], part["etag"]) for part in handler.json()["parts"]]
    if said != [(number, hashlib.md5(parts[number]).hexdigest()) for number in sorted(parts)]:
        raise Refused(400, "the parts are not those that were sent")
    return keep(handler, repo, oid, b"".join(parts[number] for number in sorted(parts)))


def keep(handler, repo, oid, data):
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "the content is not what was announced")
    handler.server.repositories[repo].blobs[oid] = data
    return {}


@route("POST", rf"/api/models/{REPO}/commit/(?P<branch>[^/]+)")
def commit(handler, repo, branch):
    found = handler.repository(repo, write=True)
    lines = [json.loads(line) for line in handler.body().splitlines()]
    header, operations = lines[0]["value"], [operation(line["key"], line["value"]) for line in lines[1:]]
    made = found.commit(branch, header["summary"], operations, header.get("parentCommit"))
    handler.server.sent.extend(content for kind, _, *content in operations if kind == "file")
    return {"success": True, "commitOid": made.oid, "commitUrl": f"{handler.server.url}/{repo}/commit/{made.oid}"}


def operation(kind, value):
    content = {"file": lambda: [base64.b64decode(value["content"])], "lfsFile": lambda: [value["oid"]]}
    return (kind, value["path"], *content.get(kind, list)())


@route("HEAD GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(handler, repo, revision, path):
    found = handler.repository(repo)
    file = found.file(revision, path)
    headers = {"X-Repo-Commit": found.at(revision).oid, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
    if file.large:
        linked = {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": len(file.data)}
        return b"", 302, {**headers, **linked, "Location": f"{handler.server.other_host}/large/{repo}/{file.oid}"}
    return ranged(handler, file.data, headers)


@route("HEAD GET", rf"/large/{REPO}/(?P<oid>[0-9a-f]{{64}})")
def download(handler, repo, oid):
    data = handler.server.repositories[repo].blobs[oid]
    return ranged(handler, data, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def ranged(handler, data, headers):
    """All of it, or the bytes that the client asks for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if not asked:
        return data, 200, headers
    start, end = int(asked[1]), int(asked[2] or len(data) - 1) + 1
    return data[start:end], 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
