"""awsomefsd summary: sizes and counts of a tree, which the daemon asks the metadata for; the mount is not walked."""

from __future__ import annotations

from typing import Any

import click

from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.looking.info import PathOnMount, place_of
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import counted, message_dict, output_option, print_fields, print_json
from awsomefsd.cli.waiting import LongWork


@click.command(cls=CliCommand)
@click.argument("directory", type=PathOnMount())
@output_option
@click.pass_obj
def summary(invocation: Invocation, directory: str, form: str) -> None:
    """Show the sizes and counts of DIRECTORY and all below it.

    The daemon reads directories with their attributes from the metadata, page after page; du(1) would look at every file through the mount.
    A file with several names counts once.  Data that a mount still buffers may not be counted yet (`awsomefsd flush`).
    """
    told: Any = None
    with invocation.client() as client, LongWork("counting") as progress:
        volume, found = place_of(client, directory)
        for told in client.summarize(volume=volume, inode=found.st_ino):
            progress.text = f"{counted(told.files, 'file')}, {told.directories} directories"
    if form == "json":
        print_json({"volume": volume, "inode": found.st_ino, **{k: v for k, v in message_dict(told).items() if k != "done"}})
        return
    print_fields(
        [
            ("directory", directory),
            ("volume", volume),
            ("directories", told.directories),
            ("files", told.files),
            ("symbolic links", told.symlinks),
            ("others", told.others),
            ("further names", told.further_names),
            ("size", format_bytes(told.bytes)),
            ("stored", format_bytes(told.stored_bytes)),
        ]
    )
