"""The figures of an evaluation in one line, with everything that is needed to repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spheregen.evaluation.report.figures import Figure, figures_in


def line_of(result: Mapping[str, Any]) -> str:
    """The figures in one line with everything that is needed to repeat them."""
    protocol = result["protocol"]
    figures = "; ".join(_against(name, each) for name, each in result["metrics"].items())
    batches = f"batches of {protocol['batch']}, spheregen {protocol['spheregen']}, torch {protocol['torch']}"
    return f"{figures}; {_samples(result['model'], protocol)}, {batches}"


def _against(name: str, metrics: Mapping[str, Any]) -> str:
    """The figures under a network, and the reference."""
    info, reference = metrics["features"], metrics["reference"]
    values = ", ".join(tell(figure, metrics["figures"], info) for figure in figures_in(metrics["figures"]))
    source = reference.get("file") or f"{reference['source']}/{reference['split']}"
    told = [f"{reference['count']} images" if reference["count"] else "count unknown"]
    if "fingerprint" in reference:
        told += [reference["fingerprint"][:12], f"{reference['image_size']} px", reference["fit"], reference["resize"]]
    return f"{values} against {source} ({', '.join(told)}) by {name}@{info['weights'][:8]}"


def _samples(model: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Which samples."""
    whose = f"{protocol['count']} samples of {model['name'] or model['class']} ({model['fingerprint']})"
    if "seed" not in protocol:
        return f"{whose} as they are, {protocol['image_size']} px"
    schedule = protocol["schedule"]
    if not isinstance(schedule, str):
        schedule = f"[{', '.join(f'{radius:g}' for radius in schedule)}]"
    threads = f" with {protocol['threads']} threads" if protocol.get("threads") else ""
    noise = "shared" if protocol["share_noise"] else "fresh"
    refined = ""
    if protocol.get("refinement_steps"):
        guidance = protocol["refinement_guidance"]
        refined = f", refined in {_steps(protocol['refinement_steps'])} by {protocol['solver']}, guidance {guidance}"
    return (
        f"{whose}, seeds {protocol['seed']} to {protocol['seed'] + protocol['count'] - 1}, {protocol['labels']} "
        f"labels, {_steps(protocol['steps'])}, {schedule} schedule, {noise} noise, "
        f"guidance {protocol['guidance']} at {protocol['guidance_at']}{refined}, 8 bits by {protocol['quantise']}, "
        f"{protocol['dtype']} on {protocol['device']}{threads}"
    )


def _steps(count: int) -> str:
    return f"{count} step{'s' if count != 1 else ''}"


def tell(figure: Figure, values: Mapping[str, float], info: Mapping[str, Any]) -> str:
    """A figure with its name, its network where the name alone does not say it, and its error."""
    value = values[figure.key]
    if figure.key == "frechet":
        return f"{info['distance']} {value:.4f}"
    whose = "" if info["name"] in ("inception", "clip") else f"-{info['name']}"
    name, digits = (f"KID{whose}", 6) if figure.key == "kid" else (figure.title, 4)
    error = values.get(figure.error) if figure.error else None
    return f"{name} {value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")
