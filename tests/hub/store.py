"""What a Hub keeps: repositories, their branches and commits, and the contents of large files."""

import hashlib
from dataclasses import dataclass, field
from itertools import count


# Large files are known by their contents' hash, others go into the commit itself.
LARGE = (".safetensors", ".bin", ".png")
_serial = count()


class Refused(Exception):
    """The answer is an error.

    Args:
        status: of HTTP.
        message: as the Hub says it.
        code: as the Hub's client knows it.
    """

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    data: bytes
    large: bool

    @property
    def oid(self):
        """SHA-256 of a large file, git's SHA-1 of any other: what the client compares its own files with."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict
    operations: list


@dataclass
class Repository:
    private: bool
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", [("file", ".gitattributes", b"")])

    def at(self, revision):
        """The commit that a branch or a hash names."""
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def file(self, revision, path):
        files = self.at(revision).files
        if path not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return files[path]

    def branch(self, name, start="main"):
        if name in self.branches:
            raise Refused(409, "Reference already exists")
        self.branches[name] = self.at(start or "main").oid

    def commit(self, branch, message, operations, parent=None):
        """Add a commit; every operation is ("file", path, bytes), ("lfsFile", path, oid) or ("deletedFile", path)."""
        before = self.at(branch) if self.commits else None
        if branch not in self.branches and before:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if parent and parent != before.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before.files) if before else {}
        for kind, path, *content in operations:
            if kind == "deletedFile":
                del files[path]
            elif kind == "file":
                files[path] = File(content[0], large=False)
            elif content[0] in self.blobs:
                files[path] = File(self.blobs[content[0]], large=True)
            else:
                raise Refused(400, f"the content of {path} was never uploaded")
        oid = hashlib.sha1(f"{next(_serial)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, message, files, [operation[:2] for operation in operations])
        self.branches[branch] = oid
        return self.commits[oid]

    def history(self, since=1):
        """The commits on any branch, oldest first, without the one that every repository starts with."""
        return list(self.commits.values())[since:]
