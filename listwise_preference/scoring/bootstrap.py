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

    names = sorted({name for counts in images for name in counts})
    table = np.array([[counts.get(name, 0) for name in names] for counts in images], dtype=float)
    draws = np.random.default_rng(seed).multinomial(len(images), [1 / len(images)] * len(images), resamples)

    def numbers(sums: Any) -> dict[str, float | None]:
        return flatten(metrics(dict(zip(names, sums.tolist(), strict=True))))

    values: dict[str, list[float]] = {
        name: [] for name, value in numbers(table.sum(axis=0)).items() if value is not None
    }
    for sums in draws @ table:
        for name, value in numbers(sums).items():
            if value is not None and name in values:
                values[name].append(value)
    return {
        "resamples": resamples,
        "seed": seed,
        "unit": "picture",
        "pictures": len(images),
        "level": 0.95,
        "intervals": {
            name: [float(edge) for edge in np.percentile(drawn, [2.5, 97.5])] if drawn else None
            for name, drawn in values.items()
        },
    }
