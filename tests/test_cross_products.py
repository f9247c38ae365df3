"""Running sums beside the sums of everything at once."""

from __future__ import annotations

import numpy as np
import pytest

from scanside.runtime.realtime.cross_products import BLOCK, CrossProducts

COLUMNS, HOLD = 4, 5


def direct(
    rows: dict[int, np.ndarray], values: dict[int, np.ndarray], baseline: np.ndarray
) -> dict[str, np.ndarray]:
    """All sums as they are defined."""
    frames = sorted(rows)
    x = np.array([rows[f] for f in frames])
    y = np.array([values[f] - baseline for f in frames])
    pairs = [(f, f - 1) for f in frames if f - 1 in rows]
    lagged = sum((np.outer(rows[a], rows[b]) for a, b in pairs), np.zeros((x.shape[1],) * 2))
    beside = sum(
        (
            np.outer(rows[a], values[b] - baseline) + np.outer(rows[b], values[a] - baseline)
            for a, b in pairs
        ),
        np.zeros((x.shape[1], y.shape[1])),
    )
    doubled = sum(
        (2 * (values[a] - baseline) * (values[b] - baseline) for a, b in pairs),
        np.zeros(y.shape[1]),
    )
    return {
        "gram": x.T @ x,
        "lagged": lagged + lagged.T,
        "now": x.T @ y,
        "neighbours": beside,
        "squares": (y**2).sum(axis=0),
        "neighbour_squares": doubled,
        "last": y[-1],
        "volumes": np.array(len(frames)),
        "pairs": np.array(len(pairs)),
    }


def summed(products: CrossProducts) -> dict[str, np.ndarray]:
    grams = products.grams()
    blocks = list(products.project(np.eye(products.columns)))
    assert [b.elements.start for b in blocks] == list(range(0, products.elements, BLOCK))
    assert blocks[-1].elements.stop == products.elements
    join = {
        name: np.concatenate([getattr(block, name) for block in blocks], axis=-1)
        for name in ("now", "neighbours", "squares", "neighbour_squares", "last")
    }
    return join | {
        "gram": grams.now,
        "lagged": grams.neighbours,
        "volumes": np.array(grams.volumes),
        "pairs": np.array(grams.pairs),
    }


@pytest.mark.parametrize("seed", range(6))
def test_sums_of_a_disorderly_run_equal_those_of_all_volumes_at_once(seed: int):
    """Volumes missing, late, twice, spoilt, and rows changed while they are open."""
    rng = np.random.default_rng(seed)
    elements = BLOCK * 2 + 37
    products = CrossProducts(COLUMNS, elements, hold=HOLD, neighbours=True, dtype=np.float64)
    rows: dict[int, np.ndarray] = {}
    values: dict[int, np.ndarray] = {}
    baseline = None
    first = int(rng.integers(0, 3))
    order = [int(f) for f in first + np.arange(45) + rng.integers(-3, 3, 45) if f >= 0]
    for step, frame in enumerate(order):
        if rng.random() < 0.15:
            continue
        row, value = rng.normal(size=COLUMNS), rng.normal(50, 9, elements)
        if frame <= products.newest and frame not in products.open_frames:
            with pytest.raises(IndexError):
                products.put(frame, row, value)
            continue
        products.put(frame, row, value)
        baseline = value if baseline is None else baseline
        rows[frame], values[frame] = row, value
        for other in list(rows):
            if products.has(other) and rng.random() < 0.2:
                products.row(other)[1] = rows[other][1] = rng.normal()
            if products.has(other) and rng.random() < 0.05 and other != frame:
                products.drop(other)
                del rows[other], values[other]
        if step in (10, 30, len(order) - 1):
            assert baseline is not None
            expected, found = direct(rows, values, baseline), summed(products)
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("gap", [2, HOLD + 1, 14, 15, 16, 40, 100_000])
def test_a_gap_of_any_length_costs_its_volumes_and_nothing_else(gap: int):
    rng = np.random.default_rng(0)
    products = CrossProducts(COLUMNS, 50, hold=HOLD, neighbours=True, dtype=np.float64)
    frames = [*range(8), *range(8 + gap, 20 + gap), 18 + gap - 2]
    rows = {frame: rng.normal(size=COLUMNS) for frame in sorted(set(frames))}
    values = {frame: rng.normal(size=50) for frame in rows}
    for frame in frames:
        products.put(frame, rows[frame], values[frame])
    late = 20 + gap
    products.put(late + 2, rows[0], values[1])
    products.put(late, rows[1], values[2])  # the gap is filled afterwards
    rows |= {late + 2: rows[0], late: rows[1]}
    values |= {late + 2: values[1], late: values[2]}
    expected, found = direct(rows, values, values[0]), summed(products)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-9, err_msg=name)


def test_a_late_volume_before_the_first_counts():
    products = CrossProducts(1, 3, hold=HOLD, dtype=np.float64)
    for frame in (2, 1, 3):
        products.put(frame, np.ones(1), np.full(3, float(frame)))
    assert products.grams().volumes == 3
    block = next(iter(products.project(np.eye(1))))
    assert block.now.tolist() == [[0.0] * 3]  # 0 - 1 + 1, less the first that came


@pytest.mark.parametrize("more", [1, 3])
def test_a_column_is_used_again_and_columns_are_added(more: int):
    rng = np.random.default_rng(0)
    products = CrossProducts(2, 5, hold=HOLD, neighbours=True, dtype=np.float64)
    rows: dict[int, np.ndarray] = {}
    values = {frame: rng.normal(size=5) for frame in range(40)}
    for frame in range(40):
        if frame == 20:
            products.clear_column(1)
            products.widen(more)
            rows = {f: np.array([row[0], 0, *[0] * more]) for f, row in rows.items()}
        rows[frame] = rng.normal(size=products.columns)
        products.put(frame, rows[frame], values[frame])
    expected, found = direct(rows, values, values[0]), summed(products)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-9, err_msg=name)


def test_memory_does_not_grow_with_the_run():
    products = CrossProducts(3, 100, hold=HOLD)
    before = products.memory_bytes
    for frame in range(300):
        products.put(frame, np.ones(3), np.full(100, float(frame)))
        if frame == 20:
            begun = products.memory_bytes
    assert products.memory_bytes == begun
    assert begun - before <= 8 * 100  # the first volume, which all are compared with
