"""`spheregen export`: a model as ONNX, as programs of torch, or as a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from spheregen.cli import options as cli
from spheregen.cli.images import output_folder


def export(
    model: cli.Model,
    to: Annotated[
        str,
        Option(
            help="onnx: graphs for onnxruntime, with a runner that needs no torch. torch: programs of torch.export. "
            "web: a static page with its runtime, for any file server."
        ),
    ] = "onnx",
    out: Annotated[Path | None, Option(help="The folder to write. Default: NAME-onnx and the like, here.")] = None,
    precision: Annotated[
        str | None,
        Option(help="Of the weights: float32, float16, or int8 per channel. Default: float32, and int8 of a page."),
    ] = None,
    runtime: Annotated[
        Path | None,
        Option(help="Of a page, the folder of the npm package onnxruntime-web. Default: node_modules here or above."),
    ] = None,
    title: Annotated[str | None, Option(help="Of a page. Default: the model's name.")] = None,
) -> None:
    """Export a model to run anywhere; the exported images are compared with the model's before anything is written.

    Examples:
        spheregen export letters --to onnx
        spheregen export runs/mine --to onnx --precision int8 --out mine-int8
        spheregen export letters --to web --out page
    """
    from spheregen.export import export_model

    folder = out or Path(f"{Path(model).name}-{to}")
    output_folder(folder)
    found = export_model(
        cli.load_pipeline(model),
        folder,
        to,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        runtime=runtime,
        title=title,
        overwrite=cli.everywhere.overwrite,
    )
    manifest = found.manifest
    told: dict[str, Any] = {
        "out": str(found.folder),
        "to": to,
        "precision": manifest["precision"],
        "bytes": found.size,
        "graphs": {name: about["bytes"] for name, about in manifest["graphs"].items()},
        "parity": manifest["parity"],
        "license": manifest["license"],
    }
    cli.answer(told, lambda: "\n".join(_lines(told)))
    use = {
        "onnx": f'use it by: spheregen.export.Runner("{found.folder}").generate(4)',
        "torch": f'use it by: torch.export.load("{found.folder / "decoder.pt2"}").module()',
        "web": f"open it by: python -m http.server --directory {found.folder}",
    }[to]
    cli.say(f"{found.folder}, {found.size / 1e6:.1f} MB; {use}")


def _lines(told: dict[str, Any]) -> list[str]:
    """Return how far the exported model's images are from the model's, for people."""
    rows = [("compared", "largest difference", "PSNR"), *(
        (name, f"{each['largest']:.2g}", f"{each['psnr']:.1f} dB") for name, each in told["parity"].items()
    )]  # fmt: skip
    return [f"{name:<16}{largest:<20}{psnr}" for name, largest, psnr in rows]
