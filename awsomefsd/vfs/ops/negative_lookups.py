"""Directories that are asked for names they do not have are listed, a page for so many such questions, until all of them is known.

Whoever makes files asks for each name first, and the answer is that there is none.  Under a lease on the directory the worker can say that
by itself once it knows all names: one request for a page of them in the place of one for each name.  A page is asked for when as many
questions as PAGE_MISSES were asked since the last, so a directory that is large, or whose lease is taken away again and again, costs little
more than it did.  A page counts only while the very grant is held under which the directory is remembered (vfs/state/leased_names.py): else
it is of another time.  Own changes that come between two pages were entered with their outcomes, in the order of the leader's answers.

Rejected: to list a directory when it is first used: most are used once.
"""

from __future__ import annotations

from functools import partial

from awsomefsd.base.limits import DIRECTORY_LISTED_ENTRIES_MAX, READDIR_ENTRIES_MAX
from awsomefsd.meta.api.messages import Entries, ReadDir
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.vfs.state.names import Directory, NameCache

PAGE_MISSES = 4


class ListAhead:
    def __init__(self, volume: int, metadata: Metadata, names: NameCache) -> None:
        self._volume = volume
        self._metadata = metadata
        self._names = names

    def missed(self, parent: int, directory: Directory) -> None:
        """A name was asked for that is not there; where that answer is taken up."""
        if directory.complete or directory.asking or not directory.grant:
            return
        directory.misses += 1
        if directory.misses < PAGE_MISSES or len(directory.names) > DIRECTORY_LISTED_ENTRIES_MAX:
            return
        directory.misses, directory.asking = 0, True
        body = ReadDir(self._volume, parent, directory.listed, READDIR_ENTRIES_MAX, False)
        self._metadata.ask(body).start(partial(self._listed, parent, directory))

    def _listed(self, parent: int, directory: Directory, page: Entries | None, error: BaseException | None) -> None:
        directory.asking = False
        if error is not None or page is None:
            return
        for entry in page.entries:
            if self._names.directory(parent) is not directory:
                return
            self._names.enter(parent, entry.name, entry.ino)
            directory.listed = entry.cookie
        if page.end and self._names.directory(parent) is directory:
            directory.complete = True
