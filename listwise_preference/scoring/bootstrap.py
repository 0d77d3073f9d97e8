"""95 % intervals by resampling images: images are independent, the questions of one image are not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Counters = Mapping[str, float]
Metrics = Mapping[str, Any]


def flatten(metrics: Metrics, prefix: str = "") -> dict[str, float | None]:
    """``{"existence": {"f1": 5}}`` as ``{"existence.f1": 5}``."""
    flat: dict[str, float | None] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def bootstrap(
    images: Sequence[Counters], metrics: Callable[[Counters], Metrics], resamples: int, seed: int
) -> dict[str, Any]:
    """Percentile intervals of every metric over ``resamples`` draws of as many images, with replacement.

    ``images`` holds each image's own counts; counts add up over images, and ``metrics`` makes the
    numbers from the sums. A metric without a number over all images gets no interval;
    one that a draw leaves undefined (None) is left out of that draw.
    """
    import numpy as np  # here, since scoring without intervals does without it

    whole, drawn = _numbers(images, metrics, resamples, seed)
    values: dict[str, list[float]] = {name: [] for name, value in whole.items() if value is not None}
    for numbers in drawn:
        for name, value in numbers.items():
            if value is not None and name in values:
                values[name].append(value)
    return {
        "resamples": resamples,
        "seed": seed,
        "unit": "picture",
        "pictures": len(images),
        "level": 0.95,
        "intervals": {
            name: [float(edge) for edge in np.percentile(of_draws, [2.5, 97.5])] if of_draws else None
            for name, of_draws in values.items()
        },
    }


def paired_bootstrap(
    first: Mapping[str, Counters],
    second: Mapping[str, Counters],
    metrics: Callable[[Counters], Metrics],
    resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """95 % intervals of ``second`` minus ``first``, both counted on the same images, which are drawn together.

    A metric that is undefined for one of them, or in every draw, gets no interval.
    """
    import numpy as np

    (whole, drawn), (other_whole, other_drawn) = (
        _numbers([counts[image] for image in first], metrics, resamples, seed) for counts in (first, second)
    )
    differences: dict[str, list[float]] = {
        name: [] for name, value in whole.items() if value is not None and other_whole.get(name) is not None
    }
    for numbers, others in zip(drawn, other_drawn, strict=True):
        for name, found in differences.items():
            value, other = numbers.get(name), others.get(name)
            if value is not None and other is not None:
                found.append(other - value)
    return {
        name: (float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5)))
        for name, found in differences.items()
        if found
    }


def _numbers(
    images: Sequence[Counters], metrics: Callable[[Counters], Metrics], resamples: int, seed: int
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    """The metrics over all images, and those of each draw of as many images with replacement."""
    import numpy as np

    names = sorted({name for counts in images for name in counts})
    table = np.array([[counts.get(name, 0) for name in names] for counts in images], dtype=float)
    draws = np.random.default_rng(seed).multinomial(len(images), [1 / len(images)] * len(images), resamples)

    def numbers(sums: Any) -> dict[str, float | None]:
        return flatten(metrics(dict(zip(names, sums.tolist(), strict=True))))

    return numbers(table.sum(axis=0)), [numbers(sums) for sums in draws @ table]
