"""`openblip plan`."""

import inspect
import sys
from typing import TYPE_CHECKING, Any

import tyro

from openblip.cli.flags import changed, checked, given_fields
from openblip.cli.output import announce, print_json, print_table
from openblip.runtime.ranges import Count, NotNegative, Positive, Share

if TYPE_CHECKING:
    from openblip.plan.sizing import Planner, RunCost, Sizing


def plan(words: list[str], prog: str) -> int:
    """What a run needs; flags that are not the command's own change the recipe, as in training."""
    own, changes = _divided(words)
    return int(tyro.cli(checked(_plan), args=own, prog=prog)(changes, prog))


def _plan(
    recipe: tyro.conf.Positional[str],
    /,
    *,
    gpu: str,
    gpus: Count = 1,
    images: Count | None = None,
    utilisation: Share | None = None,
    price_per_hour: NotNegative | None = None,
    network: Positive = 200.0,
    mean_tokens: Positive = 16.0,
    json: bool = False,
) -> Any:
    """Memory of a GPU by part, settings that make a run fit, its time and its price.

    RECIPE is tiny, small, base, large, module:recipe, a recipe.yaml or a run directory; any of its
    fields can be changed as in training. Neither data nor GPUs are needed. Example:
    openblip plan base --gpus 64 --gpu a100-40g --images 14000000 --train.batch-size 2880

    Args:
        recipe: what shall be trained.
        gpu: a100-40g, a100-80g, h100-80g, h200, l4, rtx4090, mi300x, or cpu: this machine.
        gpus: how many; one process each.
        images: of the training data, for recipes that count in epochs.
        utilisation: part of the peak that a step's arithmetic reaches, such as 0.4.
        price_per_hour: of one GPU.
        network: gigabytes per second that a node of eight GPUs sends to others.
        mean_tokens: of a text, the first token and [SEP] included.
        json: print JSON.
    """

    def carry_out(changes: list[str], prog: str) -> int:
        announce(prog)
        from openblip.plan.sizing import Cluster, Planner, find_device, find_recipe, run_cost
        from openblip.training.ignored import refuse_ignored

        cluster = Cluster(
            device=find_device(gpu),
            devices=gpus,
            utilisation=utilisation,
            price_per_hour=price_per_hour,
            network=1e9 * network,
        )
        made = changed(find_recipe(recipe), changes, prog)
        refuse_ignored(made, given_fields(changes))
        planner = Planner(made, cluster, mean_tokens)
        _tell("going through a step as given ...")
        sizings = [planner.as_given]
        if not json:
            # Settings that fit are looked for in minutes; what the recipe takes is known now.
            _print_given(planner)
        if planner.as_given.fits is False:
            _tell(f"{_gb(planner.as_given.memory)} GB do not fit; looking for settings that do ...")
            for sizing in planner.remedies():
                _tell(f"{' '.join(sizing.flags)}: {_gb(sizing.memory)} GB")
                sizings.append(sizing)
        counts = planner.recipe.train.steps is not None or images is not None
        costs = [run_cost(planner, each, images) if counts else None for each in sizings]
        if json:
            print_json([_as_json(*pair) for pair in zip(sizings, costs, strict=True)])
        else:
            _print_settings(planner, sizings, costs)
        return 0

    return carry_out


def _tell(line: str) -> None:
    """A sign of life: a step of a large model takes a minute to be gone through."""
    print(f"openblip plan: {line}", file=sys.stderr, flush=True)


def _divided(words: list[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those that change the recipe: all other flags."""
    names = {"help", *inspect.signature(_plan).parameters}
    own: list[str] = []
    changes: list[str] = []
    into = own
    for word in words:
        if word.startswith("--"):
            flag = word.split("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
            into = own if flag in names else changes
        into.append(word)
    return own, changes


def _print_given(planner: "Planner") -> None:
    cluster, given = planner.cluster, planner.as_given
    train, device = planner.recipe.train, planner.cluster.device
    print(
        f"{cluster.devices} x {device.name}, {train.precision}: {train.batch_size} pairs a step, "
        f"{train.part_size(cluster.devices)} per GPU and part; texts of "
        f"{planner.lengths.mean:g} tokens padded to {planner.lengths.longest}\n"
    )
    rows = [[name, _gb(size)] for name, size in given.parts.items()]
    print_table(["memory of a GPU", "GB"], [*rows, ["all", _gb(given.memory)]])
    if given.missing:
        print(f"without activations and time: the step cannot be counted ({given.missing})")
    verdict = {True: "fits", False: "does not fit", None: "may fit"}[given.fits]
    print(f"{verdict}: {_gb(given.memory)} of {_gb(given.capacity)} GB\n", flush=True)


def _print_settings(
    planner: "Planner", sizings: "list[Sizing]", costs: "list[RunCost | None]"
) -> None:
    cluster, given = planner.cluster, sizings[0]
    header = ["settings", "GB", "fits", "s/step", "pairs/s", "hours", "GPU-hours", "price"]
    print_table(header, [_row(*pair) for pair in zip(sizings, costs, strict=True)])
    peak = cluster.device.peak(planner.recipe.train.precision) / 1e12
    print(
        f"\nat {cluster.assumed_utilisation:.0%} of {peak:.3g} TFLOP/s"
        + (" (assumed; --utilisation changes it)" if cluster.utilisation is None else "")
        + f"; sending takes {_short(given.communication_seconds)} s of a step, as far as possible "
        "behind the backward pass"
    )
    computes = given.compute_seconds
    if computes is not None and given.communication_seconds > computes:
        print("sending takes longer than computing: use fewer GPUs, or larger parts")
    if given.fits is False:
        best = next((each for each in sizings if each.fits), None)
        flags = "nothing above makes it fit" if best is None else " ".join(best.flags)
        print(f"to make it fit: {flags}" if best else flags)


def _row(sizing: "Sizing", cost: "RunCost | None") -> list[str]:
    cells = [" ".join(sizing.flags) or "as given", _gb(sizing.memory)]
    cells.append({True: "yes", False: "no", None: "?"}[sizing.fits])
    if sizing.step_seconds is None:
        cells += ["-", "-"]
    else:
        pairs = sizing.recipe.train.batch_size / sizing.step_seconds
        cells += [_short(sizing.step_seconds), _short(pairs)]
    if cost is None:
        return [*cells, "-", "-", "-"]
    price = "-" if cost.price is None else f"{cost.price:,.0f}"
    return [*cells, _short(cost.hours), _short(cost.device_hours), price]


def _as_json(sizing: "Sizing", cost: "RunCost | None") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "flags": list(sizing.flags),
        "parts": sizing.parts,
        "memory": sizing.memory,
        "capacity": sizing.capacity,
        "fits": sizing.fits,
        "missing": sizing.missing,
        "compute_seconds": sizing.compute_seconds,
        "communication_seconds": sizing.communication_seconds,
        "step_seconds": sizing.step_seconds,
        "run": None if cost is None else asdict(cost),
    }


def _short(number: float) -> str:
    """Three digits, or all before the point: a tiny model's step is no thousandth of a second."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
