"""What the Hub says of users and repositories."""

from urllib.parse import parse_qs

import yaml
from hub.server import REPO, route
from hub.store import Refused, Repository


@route("GET", "/api/whoami-v2")
def whoami(handler):
    name, may_write = handler.user()
    if name is None:
        raise Refused(401, "Invalid username or password.")
    role = "write" if may_write else "read"
    return {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": {"role": role}}}


@route("POST", "/api/validate-yaml")
def validate_yaml(handler):
    card = handler.json()["content"]
    head = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else None
    if head is not None and not isinstance(head.get("tags", []), list):
        return {"errors": [{"message": '"tags" must be an array'}], "warnings": []}, 400
    return {"errors": [], "warnings": []}


@route("POST", "/api/repos/create")
def create(handler):
    asked = handler.json()
    owner = asked["organization"] or handler.user()[0]
    name = f"{owner}/{asked['name']}"
    handler.writer(owner)
    url = f"{handler.server.url}/{name}"
    if name in handler.server.repositories:
        return {"error": "You already created this model repo", "url": url}, 409
    handler.server.repositories[name] = Repository(asked.get("visibility") == "private")
    return {"url": url, "name": name}


@route("POST", rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)")
def create_branch(handler, repo, branch):
    handler.repository(repo, write=True).branch(branch, handler.json().get("startingPoint"))
    return {}


@route("GET", rf"/api/models/{REPO}/refs")
def refs(handler, repo):
    branches = handler.repository(repo).branches
    listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches.items()]
    return {"branches": listed, "converts": [], "tags": []}


@route("GET", rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?")
def info(handler, repo, revision="main"):
    found = handler.repository(repo)
    commit = found.at(revision)
    siblings = [{"rfilename": path} for path in commit.files]
    return {"id": repo, "sha": commit.oid, "private": found.private, "siblings": siblings, "tags": []}


@route("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
def tree(handler, repo, revision, folder=None):
    files = handler.repository(repo).at(revision).files
    inside = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
    if folder and not inside:
        raise Refused(404, "Entry not found", "EntryNotFound")
    return [listed(path, file) for path, file in inside.items()]


@route("POST", rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(handler, repo, revision):
    files = handler.repository(repo).at(revision).files
    asked = parse_qs(handler.body().decode())["paths"]
    return [listed(path, files[path]) for path in asked if path in files]


def listed(path, file):
    size = len(file.data)
    lfs = {"lfs": {"oid": file.oid, "size": size, "pointerSize": 130}} if file.large else {}
    return {"type": "file", "path": path, "size": size, "oid": file.oid, **lfs}
