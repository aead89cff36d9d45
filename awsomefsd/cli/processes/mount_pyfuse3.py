"""awsomefsd mount-pyfuse3: a mount through libfuse that this process serves."""

from __future__ import annotations

import os
import secrets

import click

from awsomefsd.base import identity
from awsomefsd.base.errors import ConfigError, NotFound, Refused
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.config import mount_options


@click.command(name="mount-pyfuse3", cls=CliCommand)
@click.argument("volume")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("-O", "--options", "options", multiple=True, help="Mount options as `awsomefsd mount` takes them (repeatable).")
@click.pass_obj
def mount_pyfuse3(invocation: Invocation, volume: str, directory: str, options: tuple[str, ...]) -> None:
    """Mount VOLUME on DIRECTORY through libfuse, and serve it in this process.

    For hosts where libfuse is wanted: pip install awsomefsd[pyfuse3].  It runs until the directory is unmounted (fusermount3 -u, umount)
    or SIGTERM; the mount ends with this process.
    """
    try:
        from awsomefsd.worker import pyfuse3
    except ImportError as err:
        raise Refused(
            f"pyfuse3 is not installed ({err}); pip install 'awsomefsd[pyfuse3]', which needs libfuse3-dev, pkg-config and a compiler"
        ) from None
    from awsomefsd.daemon.worker_config import worker_config
    from awsomefsd.node.mounts import DesiredMount

    parsed = mount_options.parse([word for text in options for word in mount_options.split(text)], by_root=os.geteuid() == 0)
    with invocation.client() as client:
        found = next((row for row in client.call("ListVolumes").volumes if row.name == volume), None)
    if found is None:
        raise NotFound(f"there is no volume {volume}; see `awsomefsd volume ls`")
    directory = os.path.abspath(directory)
    wanted = DesiredMount(secrets.randbelow((1 << 63) - 1) + 1, found.volume, volume, directory, options)
    if parsed.shared:
        raise ConfigError("mount option shared: a mount through libfuse cannot share its volume with other nodes; use `awsomefsd mount`")
    config = worker_config(invocation.settings, identity.load(invocation.settings.state_dir))(wanted, parsed)
    words = [*filter(None, parsed.fuse_options.split(",")), *parsed.flags]
    ready = f"serving {volume} on {directory} with pyfuse3, pid {os.getpid()}"
    pyfuse3.serve(wanted.mount, directory, volume, words, config, lambda: click.echo(ready))
