"""awsomefsd mount-pyfuse3: a mount through libfuse, served by this very process."""

from __future__ import annotations

import os
import secrets

import click

from awsomefsd import mount_options, node
from awsomefsd.cli.main import Command, Session
from awsomefsd.errors import ConfigError, NotFound, Refused


@click.command(name="mount-pyfuse3", cls=Command)
@click.argument("volume")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("-O", "--options", "options", multiple=True, help="As `awsomefsd mount` takes them.")
@click.pass_obj
def mount_pyfuse3(session: Session, volume: str, directory: str, options: tuple[str, ...]) -> None:
    """Mount VOLUME on DIRECTORY with pyfuse3 and serve it until it is unmounted (fusermount3 -u, umount) or SIGTERM.

    For hosts where libfuse is wanted: pip install awsomefsd[pyfuse3].  The mount does not outlive this process.
    """
    try:
        from awsomefsd import adapter_pyfuse3
    except ImportError as err:
        raise Refused(
            f"pyfuse3 is not there ({err}); pip install 'awsomefsd[pyfuse3]', which needs libfuse3-dev, pkg-config and a compiler"
        ) from None
    from awsomefsd.daemon import worker_config
    from awsomefsd.mounts import Wish

    parsed = mount_options.parse([word for text in options for word in mount_options.split(text)], by_root=os.geteuid() == 0)
    with session.client() as client:
        found = next((row for row in client.call("ListVolumes").volumes if row.name == volume), None)
    if found is None:
        raise NotFound(f"there is no volume {volume}")
    directory = os.path.abspath(directory)
    wish = Wish(secrets.randbelow((1 << 63) - 1) + 1, found.volume, volume, directory, options)
    if parsed.shared:
        raise ConfigError("mount option shared: a mount through libfuse has its volume alone; use `awsomefsd mount`")
    config = worker_config(session.settings, node.load(session.settings.state_dir))(wish, parsed)
    words = [*filter(None, parsed.fuse_options.split(",")), *parsed.flags]
    adapter_pyfuse3.serve(
        wish.mount, directory, volume, words, config, lambda: click.echo(f"serving {volume} on {directory} with pyfuse3, pid {os.getpid()}")
    )
