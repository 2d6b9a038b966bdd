"""An independent, slow float64 version of what a stage and a stack compute: loops and scipy, no torch layers."""

import numpy as np
from scipy.signal import correlate2d


def interpolate(coarse, factor):
    """Bilinear, half-pixel centres, edges replicated, one cell at a time."""
    nlat, nlon = coarse.shape
    fine = np.empty((nlat * factor, nlon * factor))
    for i in range(nlat * factor):
        y = min(max((i + 0.5) / factor - 0.5, 0), nlat - 1)
        i0 = int(y)
        i1 = min(i0 + 1, nlat - 1)
        for j in range(nlon * factor):
            x = min(max((j + 0.5) / factor - 0.5, 0), nlon - 1)
            j0 = int(x)
            j1 = min(j0 + 1, nlon - 1)
            top = coarse[i0, j0] * (1 - (x - j0)) + coarse[i0, j1] * (x - j0)
            low = coarse[i1, j0] * (1 - (x - j0)) + coarse[i1, j1] * (x - j0)
            fine[i, j] = top * (1 - (y - i0)) + low * (y - i0)
    return fine


TRANSFORMS = {
    None: (lambda x: x, lambda y: y),
    "sqrt": (lambda x: np.sqrt(np.maximum(x, 0)), np.square),
    "log1p": (lambda x: np.log1p(np.maximum(x, 0)), np.expm1),
}


def stage(one, coarse, static):
    """One day, transformed, through one Stage: ``coarse (lat, lon)``, ``static (n, factor * ...)``, no NaN."""
    config = one.net.config
    between = interpolate(coarse, config.factor)
    channels = [(between - one.precipitation.mean) / one.precipitation.std]
    channels += [(static[i] - n.mean) / n.std for i, n in enumerate(one.static.values())]
    radius = sum(k // 2 for k in config.kernels)
    x = np.stack([np.pad(c, radius, mode="edge") for c in channels])
    parameters = [p.detach().double().numpy() for p in one.net.parameters()]
    for layer in range(len(config.kernels)):
        weight, bias = parameters[2 * layer], parameters[2 * layer + 1]
        x = np.stack(
            [
                sum(correlate2d(x[c], weight[o, c], mode="valid") for c in range(x.shape[0])) + bias[o]
                for o in range(weight.shape[0])
            ]
        )
        if layer < len(config.kernels) - 1:
            x = np.maximum(x, 0)
    if config.conserve == "softmax":
        return x[0]  # exponents
    result = x[0] * one.target.std + one.target.mean
    if config.residual:
        result = result + between
    return np.maximum(result, 0)


def block_mean(field, factor):
    """Mean of blocks, NaN left out."""
    nlat, nlon = (n // factor for n in field.shape)
    out = np.empty((nlat, nlon))
    for i in range(nlat):
        for j in range(nlon):
            block = field[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            out[i, j] = block[~np.isnan(block)].mean()
    return out


def channels(model, static):
    """Static channels of every stage; ``static`` is a dict of finest maps without NaN."""
    scale = int(np.prod([s.net.config.factor for s in model.stages]))
    means = {k: block_mean(v, scale) for k, v in static.items()}
    every = []
    for one in model.stages:
        config = one.net.config
        scale //= config.factor
        fine = {k: block_mean(v, scale) for k, v in static.items()}
        every.append([])
        for name in config.static:
            if name == "climatology":
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratio = fine[name] / interpolate(means[name], config.factor)
                ratio[np.isnan(ratio)] = 1  # 0 of 0
                every[-1].append(np.log(np.clip(ratio, 0.2, 5)))
            else:
                every[-1].append(fine[name])
        means = fine
    return every


def stack(model, coarse, static, weights=None):
    """One day through a stack; ``static`` is a dict of finest maps without NaN, or their `channels`.

    ``weights`` of the finest cells, for stages that keep coarse means.
    """
    every = channels(model, static) if isinstance(static, dict) else static
    scale = model.scale
    for one, fields in zip(model.stages, every, strict=True):
        there, back = TRANSFORMS[one.transform]
        config = one.net.config
        scale //= config.factor
        fine = stage(one, there(coarse), np.array(fields))
        if config.conserve != "softmax":
            fine = back(fine)
        if config.conserve:
            fine = conserve(fine, coarse, block_mean(weights, scale), config.factor, config.conserve)
        coarse = fine
    return coarse


def areas(lat, columns, mask):
    """Area of each finest cell on the sphere where it is wanted, else 0."""
    half = abs(lat[1] - lat[0]) / 2
    bands = [np.sin(np.deg2rad(one + half)) - np.sin(np.deg2rad(one - half)) for one in lat]
    return np.outer(bands, np.ones(columns)) * (1 if mask is None else mask)


def fill(coarse, reach):
    """Fill NaN from the nearest observed cell within ``reach`` rows and columns (first if tied); 0 if there is none."""
    filled = coarse.copy()
    for i, j in np.argwhere(np.isnan(coarse)):
        near = [
            ((a - i) ** 2 + (b - j) ** 2, a, b)
            for a, b in np.argwhere(np.isfinite(coarse))
            if max(abs(a - i), abs(b - j)) <= reach
        ]
        filled[i, j] = coarse[min(near)[1:]] if near else 0
    return filled


def downscale(model, days, static, mask=None, lat=None):
    """Days ``(n, lat, lon)`` in the model's units through a stack; what is not finite is missing, on that day only."""
    scale = model.scale
    static = channels(model, {k: v for k, v in static.items() if k in model.static_names})
    weights = None if lat is None else areas(lat, days.shape[2] * scale, mask)
    fine = []
    for day in days:
        day = np.where(np.isfinite(day), day, np.nan)
        one = stack(model, fill(day, model.halo), static, weights)
        one[np.kron(np.isnan(day), np.ones((scale, scale))) > 0] = np.nan
        fine.append(one if mask is None else np.where(mask, one, np.nan))
    return np.stack(fine)


def conserve(fine, coarse, weights, factor, kind):
    """One map: each block separately, as defined in docs/method.md. A cell with weight 0 stays unchanged."""
    kept = fine.astype(np.float64)
    for i, j in np.ndindex(coarse.shape):
        block = (slice(i * factor, (i + 1) * factor), slice(j * factor, (j + 1) * factor))
        y, w, x = fine[block].astype(np.float64), weights[block].astype(np.float64), float(coarse[i, j])
        counts = w > 0
        if kind == "softmax":
            kept[block] = x
        if not counts.any():
            continue
        y, w = y[counts], w[counts]
        if kind == "softmax":
            y = np.exp(y - y.max())
        if kind == "additive":
            y = np.maximum(y + x - (w * y).sum() / w.sum(), 0)
        mean = (w * y).sum() / w.sum()
        kept[block][counts] = 0 if x == 0 else x if mean == 0 else y * x / mean
    return kept
