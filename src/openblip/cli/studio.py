"""`openblip studio`."""

from pathlib import Path
from typing import Annotated

import tyro

from openblip.cli.flags import Backend
from openblip.runtime.errors import OpenBlipError, RecipeError, install_extra
from openblip.runtime.ranges import Range

Port = Annotated[int, Range(0, 65535)]
DEFAULT_PORT = 7863


def studio(
    place: tyro.conf.Positional[str | None] = None,
    /,
    *,
    captioner: str | None = None,
    filter: str | None = None,
    vqa: str | None = None,
    runs: Path | None = None,
    host: str = "127.0.0.1",
    token: str | None = None,
    port: Port = DEFAULT_PORT,
    open: bool = True,
    device: str | None = None,
    backend: Backend | None = None,
) -> int:
    """Look into a collection in the browser: search it, try models on it, see what CapFilt decided.

    The page is served by this machine to itself; nothing leaves it. Models are loaded when they are
    first used. Example: openblip studio photos/ --captioner demo/captioner --filter demo/filter

    Args:
        place: a pair table, or a folder of images; without it only models and runs are shown.
        captioner: a checkpoint that can caption; by default a published one, fetched at its first
            use.
        filter: a checkpoint that can match; by default the model of the index, or else a published
            one.
        vqa: a checkpoint that answers questions; by default a published one.
        runs: a folder of training runs.
        host: address to listen at; any but this machine's own lets others in, and needs --token.
        token: letters and digits, 16 at least, without which nothing is answered.
        port: to listen at; 0 for any that is free.
        open: open the page in the browser.
        device: cpu, cuda, mps; by default the best that there is.
        backend: what computes the named models on a processor in the place of PyTorch: ONNX
            Runtime, also in 8-bit integers, or OpenVINO.
    """
    check_studio()
    from openblip.checkpoints.hub import PUBLISHED
    from openblip.studio.app import Studio
    from openblip.studio.guard import Access
    from openblip.studio.models import Models, Role
    from openblip.studio.server import serve

    access = Access(host=host, token=token)
    if runs is not None and not runs.is_dir():
        raise RecipeError(f"--runs {runs} is no folder: give one with training runs")
    named: dict[Role, str | None] = {"captioner": captioner, "filter": filter, "vqa": vqa}
    published: dict[Role, str] = {
        "captioner": PUBLISHED["caption"],
        "filter": PUBLISHED["match"],
        "vqa": PUBLISHED["ask"],
    }
    for role, source in named.items():
        _check_name(f"--{role}", source)
    if backend is not None:
        from openblip.checkpoints.reading import with_backend

        named = {role: source and with_backend(source, backend) for role, source in named.items()}
        published = {role: with_backend(source, backend) for role, source in published.items()}
    models = Models(named, device, published)

    serve(Studio(place, models=models, runs=runs), access, port, tell_address, open)
    return 0


def _check_name(flag: str, source: str | None) -> None:
    """Nothing, if a model of that name may be somewhere; it is loaded at its first use.

    Raises:
        RecipeError: it is neither here nor of the hub.
    """
    from openblip.checkpoints.hub import is_repo_id, split_revision
    from openblip.studio.models import without_backend

    place = None if source is None else without_backend(source).removeprefix("open_clip:")
    is_elsewhere = place is None or "//" in place or is_repo_id(split_revision(place)[0])
    if place is not None and not is_elsewhere and not Path(place).exists():
        raise RecipeError(f"{flag} {source}: no such file or folder; give a model that exists")


def check_studio() -> None:
    """Nothing, if the packages are there that the studio needs.

    Raises:
        OpenBlipError: one is not.
    """
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise OpenBlipError(f"the studio needs more: {install_extra('studio')}") from error


def tell_address(address: str) -> None:
    """Say where the studio is."""
    print(f"studio: {address}  (Ctrl-C ends it)", flush=True)
