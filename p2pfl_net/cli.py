"""What a person types: `p2pfl-net serve | peers | status | get`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pfl_net import views
from p2pfl_net.errors import UsageError

EPILOG = """Exit codes: 0 done; 1 a fault of this program; 2 wrong usage; 3 the state directory cannot be
used (in use, read-only, full, another host's); 4 no boot peer answered; 5 the port is taken or not
allowed; 7 the key is damaged; 8 a model could not be fetched."""

app = typer.Typer(
    name="p2pfl-net",
    help="The networking daemon of a peer, and commands that read what it knows.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

StateOption = Annotated[Path, typer.Option("--state", help="The peer's state directory.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def serve(
    port: Annotated[str, typer.Option(help="TCP port; 0 chooses one and needs --state.")],
    boot: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of a peer to join through; may be repeated.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="State directory.", show_default="state/PORT")] = None,
    host: Annotated[str, typer.Option(help="IP address to listen on; :: is every interface.")] = "::",
    advertise: Annotated[
        str | None, typer.Option(help="HOST:PORT to announce instead of learned addresses.")
    ] = None,
    boot_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to go on trying the boot peers.")
    ] = 60.0,
    max_model_gb: Annotated[float, typer.Option(min=0.001, help="Refuse larger models.")] = 1024.0,
    drain: Annotated[float, typer.Option(min=0.0, help="Seconds for running uploads at a stop.")] = 5.0,
) -> None:
    """Join the network, keep the peer list, serve the published model, fetch those of others."""
    from p2pfl_net import config as parse
    from p2pfl_net.runtime.supervisor import Daemon

    number = parse.parse_port(port)
    if state is None and number == 0:
        raise UsageError("--port 0 needs --state DIR: the directory cannot be named after the port")
    daemon = Daemon(
        parse.ServeConfig(
            state=state or Path("state") / str(number),
            host=parse.parse_host(host),
            port=number,
            boot=parse.parse_boot(boot or []),
            boot_timeout_s=boot_timeout,
            advertise=parse.parse_advertise(advertise),
            max_model_bytes=int(max_model_gb * 1e9),
            drain_s=drain,
        ),
        say=lambda line: typer.echo(f"p2pfl-net: {line}", err=True),
    )
    daemon.serve()


@app.command()
def peers(state: StateOption, as_json: JsonOption = False) -> None:
    """Show the peer list of a running or stopped peer."""
    from p2pfl_net.inspect import read_peers

    views.show_peers(read_peers(state), as_json=as_json)


@app.command()
def status(state: StateOption, as_json: JsonOption = False) -> None:
    """Show what a peer is doing: processes, network, published model, last round, last events."""
    from p2pfl_net.inspect import read_status

    views.show_status(read_status(state), as_json=as_json)


@app.command()
def get(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Any peer's address.")],
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte after which to give up.")
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Fetch a peer's published model without joining its network; a broken download is resumed."""
    from p2pfl_net import get as getting
    from p2pfl_net.config import parse_target

    with views.progress_bar(hidden=as_json) as progress:
        header = getting.get(parse_target(address), out, patience_s=patience, progress=progress)
    views.show_fetched(header, out, as_json=as_json)
