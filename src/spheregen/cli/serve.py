"""`spheregen serve`: models behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from spheregen.cli import options as cli
from spheregen.errors import ConfigError

_LIMITS = "Limits of a request"


def serve(
    models: Annotated[
        list[str],
        Argument(help="Model folders, bundled models or Hub ids; NAME=MODEL for another name.", metavar="MODEL..."),
    ],
    host: Annotated[str, Option(help="The address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(help="The port.")] = 8000,
    workers: Annotated[int, Option(help="Processes, each with all models; one that dies is replaced.")] = 1,
    threads: Annotated[
        int | None, Option(help="Threads of the arithmetic of each. Default: the cores, shared.")
    ] = None,
    queue: Annotated[int, Option(help="Images that may wait in a worker; requests beyond get 429.")] = 1024,
    tokens: Annotated[
        Path | None,
        Option(
            help="A file of bearer tokens, one a line, of which each request must bring one; or SPHEREGEN_TOKENS, "
            "a variable with commas."
        ),
    ] = None,
    cors: Annotated[
        list[str] | None, Option(help="An origin whose pages may call, such as https://example.org; repeatable.")
    ] = None,
    images: Annotated[int, Option(rich_help_panel=_LIMITS, help="Images that it sends or asks for.")] = 64,
    steps: Annotated[int, Option(rich_help_panel=_LIMITS, help="Steps of the loop, and of a flow.")] = 100,
    pixels: Annotated[int, Option(rich_help_panel=_LIMITS, help="Pixels of an image that it sends.")] = 16_000_000,
    body_bytes: Annotated[int, Option(rich_help_panel=_LIMITS, help="Its bytes.")] = 32 << 20,
    seconds: Annotated[float, Option(rich_help_panel=_LIMITS, help="Until it is answered.")] = 60,
    sending_seconds: Annotated[float, Option(rich_help_panel=_LIMITS, help="Until it has arrived.")] = 20,
) -> None:
    """Serve models over HTTP: OpenAI's images API, and one that does all that a pipeline does.

    Requests that come together go through the network together, and each image is the same as alone. /docs lists the
    addresses, and works offline; /healthz, /readyz and /metrics are for those who run it.

    Examples:
        spheregen serve digits
        spheregen serve runs/mine letters=runs/letters --workers 2 --port 8080
        spheregen serve runs/mine --host 0.0.0.0 --tokens tokens.txt --cors https://example.org
    """
    from spheregen.external import import_package

    for package in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "greenlet"):
        import_package(package, "serve", "the service")
    from spheregen.serving.server import serve as run
    from spheregen.serving.settings import Limits, Settings

    settings = Settings(
        models=tuple(models),
        device=cli.everywhere.device,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        queue=queue,
        tokens=_tokens(tokens),
        cors=tuple(cors or ()),
        quiet=cli.everywhere.quiet,
        limits=Limits(
            images=images,
            steps=steps,
            pixels=pixels,
            body_bytes=body_bytes,
            seconds=seconds,
            sending_seconds=sending_seconds,
        ),
    )
    if not settings.is_local and not settings.tokens:
        cli.warn(f"warning: everybody who reaches {host}:{port} may use it; --tokens FILE asks for one")
    cli.say(f"serving {', '.join(settings.named_models)} at http://{host}:{port}, docs at /docs; Ctrl+C stops it")
    if code := run(settings):
        raise SystemExit(code)


def _tokens(path: Path | None) -> tuple[str, ...]:
    """Read the tokens of a file, or of the variable."""
    if path is None:
        from spheregen.serving.settings import tokens_of_environment

        return tokens_of_environment()
    try:
        found = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"{path} cannot be read ({problem}); check --tokens") from error
    if not found:
        raise ConfigError(f"{path} holds no token; write one into it, or leave --tokens out")
    return found
