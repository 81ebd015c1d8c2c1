"""
What can be fitted to the finished runs of a scaling study, in numpy alone: iso-FLOP curves, the loss over sizes and tokens,
and a metric over compute. scaling/ prints what is here and scaling/figures.py draws it.

    isoflop    y = c0 + c1 x + c2 x^2, x = ln N, for each budget C by least squares; N_opt at its vertex; over the budgets
               ln N_opt = ln G + p ln C, and D_opt = C / (6 N_opt)                     (Hoffmann et al. 2022, approach 2)
    surface    L(N, D) = E + A / N^a + B / D^b with E, A, B >= 0                                           (approach 3)
               N_opt = G (C / 6)^(b / (a + b)),  G = (a A / (b B))^(1 / (a + b))
    compute    ln m = k + g ln C of the best model of each budget, m a metric or the loss: the power law of SIMS 2.2

surface: least squares of the relative residuals (L_i - L(N_i, D_i)) / L_i, to first order those of ln L, by variable
projection (Golub and Pereyra 1973; for this law arXiv 2603.22339): at given a and b the rest is linear and solved exactly,
so only (a, b) is searched, all of it, by a grid that is then refined. Hoffmann et al. take a Huber loss for the outliers
of hundreds of runs; in a few dozen each run counts, so residuals are shown instead and none is weighted down.

Intervals, 95 %, by parametric bootstrap: the fit's own values with normal noise of the residuals' spread s on them are
fitted again DRAWS times. With few runs s is itself uncertain, so each draw has its own, s sqrt(df / chi2(df)), which is
what makes the t distribution of the normal one in the linear case. What the data cannot support is Refused, with the reason.
"""
import math
from statistics import NormalDist

import numpy as np

from configurator import Refused
from scaling.runs import count, values_of

DRAWS = 1000 # of the bootstrap
EXPONENTS = (0.02, 2.0) # a and b are searched between these
CHANCE = 0.5 # of the tasks' two alternatives

def budgets_of(C):
    """Arrays of indices, one a budget, by rising compute: runs within 10 % of the next, as whole steps round C."""
    order = np.argsort(C, kind='stable')
    return np.split(order, np.flatnonzero(np.diff(np.log(C[order])) > math.log(1.1)) + 1)

def noise(rng, n, spread, df):
    """(n, DRAWS): normal noise of a spread that was estimated with df degrees of freedom; column 0 is nought."""
    each = spread * np.sqrt(df / rng.chisquare(df, DRAWS))
    draws = rng.standard_normal((n, DRAWS)) * each
    draws[:, 0] = 0
    return draws

def interval(draws):
    """[2.5 %, 97.5 %] of draws, of which the first is the estimate; None where more than 5 % of them are not defined.

    Bias-corrected percentiles (Efron 1987, without acceleration): where the draws lie off the estimate, so does the
    estimate lie off the truth, and the levels are moved by twice that.
    """
    draws = np.asarray(draws, dtype=float)
    fine, normal = draws[np.isfinite(draws)], NormalDist()
    if len(draws) < 2 or len(fine) < 0.95 * len(draws) or not math.isfinite(draws[0]):
        return None
    below = min(max(((fine[1:] < draws[0]).mean() + (fine[1:] <= draws[0]).mean()) / 2, 0.01), 0.99)
    levels = [normal.cdf(2 * normal.inv_cdf(below) + z) for z in (-1.96, 1.96)]
    return [float(q) for q in np.quantile(fine, levels)]

def line(x, Y):
    """Slope and intercept of each column of Y (n, B) over x (n,), by least squares."""
    slope, at_0 = np.polyfit(x - x.mean(), Y, 1)
    return slope, at_0 - slope * x.mean()

# ----------------------------------------------------------------------------------------------------------------
# iso-FLOP curves

def vertices(lnN, groups, Y):
    """(x, y, c2) of the vertices of the parabolas through Y (n, B), of each group of indices: (K, B) each."""
    found = []
    for of in groups:
        mid = lnN[of].mean()
        c2, c1, c0 = np.polyfit(lnN[of] - mid, Y[of], 2)
        with np.errstate(divide='ignore', invalid='ignore'):
            found.append((mid - c1 / (2 * c2), c0 - c1 ** 2 / (4 * c2), c2))
    return (np.stack(part) for part in zip(*found))

def place(N_opt, N, best, flat):
    """Where the vertex of a budget's parabola lies, as isoflop says it."""
    low, high = N.min(), N.max()
    if math.isnan(N_opt):
        return 'no optimum'
    if not low <= N_opt <= high:
        return 'below the grid' if N_opt < low else 'above the grid'
    return 'flat within the noise' if flat else 'not bracketed' if best in (low, high) else 'inside'

def isoflop(runs, metric):
    """A parabola for each budget with at least 3 sizes, its minimum (of a score: maximum), and N_opt(C) where it is had.

    -> {'budgets': [{'C', 'N', 'y', 'stderr', 'parabola' (c2, c1, c0 in ln N), 'best_N' (of the runs), 'N_opt', 'N_interval',
    'y_opt', 'where'}], 'left_out', 'exponent_N', 'G', 'exponent_D', each exponent with its _interval, 'draws' (ln G, p),
    'rms'}; 'where' is 'inside', 'below the grid', 'above the grid', 'no optimum', 'flat within the noise' or 'not bracketed'
    (the best run is the smallest or largest, though the vertex lies between them). The exponents need 3 budgets whose
    optimum is inside; 'refused' says why they are not there. Refused: no budget has 3 sizes, values equal or not finite.
    """
    N, _, C, y, errors = values_of(runs, metric)
    sign = 1 if metric == 'loss' else -1 # a score is best where it is highest
    groups = [of for of in budgets_of(C) if len(np.unique(N[of])) >= 3]
    left_out = [f"{np.exp(np.log(C[of]).mean()):.3g} FLOPs: {count(len(np.unique(N[of])), 'size')}"
                for of in budgets_of(C) if len(np.unique(N[of])) < 3]
    if not groups:
        raise Refused(f"{metric}: no budget has 3 sizes for a parabola ({'; '.join(left_out)})")
    used = np.concatenate(groups)
    if np.ptp(y[used]) < 1e-9 * abs(y[used]).max():
        raise Refused(f"{metric}: flat, {y[used[0]]:.4g} in all runs")
    lnN, fits = np.log(N), [np.polyfit(np.log(N[of]), y[of], 2) for of in groups]
    hat = y.copy()
    for of, fit in zip(groups, fits):
        hat[of] = np.polyval(fit, lnN[of])
    df = len(used) - 3 * len(groups)
    rms = float(np.sqrt(((y - hat)[used] ** 2).sum() / df)) if df else math.nan
    spread = rms if df else float(np.sqrt(np.nanmean(errors[used] ** 2))) if not np.isnan(errors[used]).all() else math.nan
    draws = None
    if math.isfinite(spread): # where 3 sizes leave no residuals, the evaluation's own error stands for the noise, at least
        draws = hat[:, None] + noise(np.random.default_rng(0), len(y), spread, df or 1e6)
    x, top, c2 = vertices(lnN, groups, hat[:, None] if draws is None else draws)
    x[sign * c2 <= 0] = math.nan # no minimum there
    rows = []
    for k, of in enumerate(groups):
        at, ends = x[k, 0], None if draws is None else interval(x[k])
        best = N[of][np.argmin(sign * y[of])]
        rows.append({'C': float(np.exp(np.log(C[of]).mean())), 'N': N[of].tolist(), 'y': y[of].tolist(),
                     'stderr': np.nan_to_num(errors[of]).tolist(), 'parabola': fits[k].tolist(), 'best_N': float(best),
                     'N_opt': None if np.isnan(at) else float(np.exp(at)),
                     'N_interval': ends and [float(np.exp(end)) for end in ends],
                     'y_opt': None if np.isnan(at) else float(top[k, 0]),
                     'where': place(np.exp(at), N[of], best, draws is not None and ends is None)})
    found = {'metric': metric, 'budgets': rows, 'left_out': left_out, 'rms': None if math.isnan(rms) else rms}
    inside = [k for k, row in enumerate(rows) if row['where'] == 'inside']
    if len(inside) < 3:
        why = 'one budget gives no exponent' if len(inside) == 1 else 'a line through two points fits anything'
        return found | {'refused': f"{metric}: N_opt(C) needs 3 budgets whose optimum lies inside the grid, there "
                                   f"{'is' if len(inside) == 1 else 'are'} {len(inside)} of {len(rows)}"
                                   + (f": {why}" if inside else '')}
    p, lnG = line(np.log([rows[k]['C'] for k in inside]), x[inside])
    span = None if draws is None else interval(p)
    return found | {'exponent_N': float(p[0]), 'exponent_N_interval': span, 'G': float(np.exp(lnG[0])),
                    'exponent_D': 1 - float(p[0]), 'exponent_D_interval': span and [1 - span[1], 1 - span[0]],
                    'draws': np.stack((lnG, p))}

# ----------------------------------------------------------------------------------------------------------------
# the surface L(N, D)

def linear(a, b, lnN, lnD, y, w):
    """Exact E, A, B and the weighted sum of squares at exponents a and b, which broadcast against y's leading axes.

    lnN, lnD, w: (n,); y (..., n); results have a's, b's and y's leading axes broadcast. A and B belong to N and D in units
    of their geometric means. The sum is inf where E, A or B would be negative: at the edge of what is allowed the best
    (a, b) has a neighbour inside that is as good.
    """
    u = w / math.sqrt((w * w).sum())
    p, q = (w * np.exp(-np.asarray(e)[..., None] * x) for e, x in ((a, lnN), (b, lnD)))
    z = w * y
    pu, qu, zu = (v @ u for v in (p, q, z))
    p, q, z = p - pu[..., None] * u, q - qu[..., None] * u, z - zu[..., None] * u # without the constant's part
    dot = lambda v, s: np.einsum('...n,...n->...', v, s)
    pp, qq, pq, pz, qz = dot(p, p), dot(q, q), dot(p, q), dot(p, z), dot(q, z)
    with np.errstate(divide='ignore', invalid='ignore'):
        det = pp * qq - pq * pq
        A, B = (pz * qq - qz * pq) / det, (qz * pp - pz * pq) / det
        E = (zu - A * pu - B * qu) / math.sqrt((w * w).sum())
        sse = dot(z, z) - A * pz - B * qz
    return E, A, B, np.where((E >= 0) & (A > 0) & (B > 0) & (det > 1e-14 * pp * qq), sse, np.inf)

def project(lnN, lnD, Y, w):
    """The best (a, b) for each row of Y (R, n): a grid over all of EXPONENTS in the logarithms, then ever finer ones around
    the best point. -> a, b, E, A, B of (R,), nan where no exponents give E, A, B >= 0."""
    grid = np.linspace(*np.log(EXPONENTS), 33)
    la, lb = (g.ravel() for g in np.meshgrid(grid, grid, indexing='ij'))
    sse = linear(np.exp(la)[:, None], np.exp(lb)[:, None], lnN, lnD, Y, w)[3] # (33 * 33, R)
    best = sse.argmin(0)
    none, la, lb, step = np.isinf(sse.min(0)), la[best], lb[best], grid[1] - grid[0]
    di, dj = (g.ravel() for g in np.meshgrid(np.arange(-3, 4), np.arange(-3, 4), indexing='ij'))
    for _ in range(9): # at every turn the window is 3 steps wide, the step halved: ridges are followed
        step /= 2
        ga, gb = (np.clip(x[:, None] + step * d, *np.log(EXPONENTS)) for x, d in ((la, di), (lb, dj)))
        sse = linear(np.exp(ga), np.exp(gb), lnN, lnD, Y[:, None], w)[3] # (R, 49)
        best = sse.argmin(1)[:, None]
        la, lb = (np.take_along_axis(g, best, 1)[:, 0] for g in (ga, gb))
    a, b = np.exp(la), np.exp(lb)
    E, A, B, _ = linear(a, b, lnN, lnD, Y, w)
    return tuple(np.where(none, math.nan, v) for v in (a, b, E, A, B))

def surface(runs):
    """E + A / N^a + B / D^b through the runs' losses.

    -> {'E', 'A', 'B', 'a', 'b', 'exponent' (of N_opt in C), each with NAME_interval, 'rms' (relative), 'residuals'
    {run: relative}, 'draws' (5, DRAWS)}. Refused: fewer than 7 runs, 3 sizes or 3 token counts, one budget, losses that
    are flat or not finite, and exponents that the data leave open (at the edge of the search).
    """
    N, D, C, L, _ = values_of(runs, 'loss')
    for what, have, need in (('runs', len(L), 7), ('sizes', len(np.unique(N)), 3), ('token counts', len(np.unique(D)), 3)):
        if have < need:
            raise Refused(f"the surface has 5 unknowns: expected at least {need} {what}, got {have}")
    if len(budgets_of(C)) < 2:
        raise Refused("one budget: N and D = C / 6N move together there, which of them the loss follows cannot be told")
    if np.ptp(L) < 1e-6 * L.mean():
        raise Refused(f"the loss is flat, {L[0]:.4g} in all runs")
    midN, midD = np.log(N).mean(), np.log(D).mean()
    lnN, lnD, df = np.log(N) - midN, np.log(D) - midD, len(L) - 5
    a, b, E, A, B = (v[0] for v in project(lnN, lnD, L[None], 1 / L))
    if math.isnan(a):
        raise Refused("no exponents give E, A and B above 0: the loss does not fall with both N and D; expected budgets with "
                      "models too small as well as too large")
    hat = E + A * np.exp(-a * lnN) + B * np.exp(-b * lnD)
    relative = (L - hat) / L
    edge = [f"{name} = {v:.3g}" for name, v in (('a', a), ('b', b))
            if not 1.02 * EXPONENTS[0] < v < EXPONENTS[1] / 1.02]
    if edge:
        raise Refused(f"the data leave {' and '.join(edge)} open: the fit runs to the edge of {EXPONENTS[0]} to "
                      f"{EXPONENTS[1]}; expected a wider range of sizes and budgets, or less noise")
    spread = math.sqrt((relative ** 2).sum() / df)
    Y = hat * (1 + noise(np.random.default_rng(0), len(L), spread, df).T)
    a, b, E, A, B = project(lnN, lnD, Y, 1 / hat)
    draws = np.stack((E, A * np.exp(a * midN), B * np.exp(b * midD), a, b)) # of N and D in ones
    each = dict(zip(('E', 'A', 'B', 'a', 'b'), draws)) | {'exponent': b / (a + b)}
    found = {name: float(v[0]) for name, v in each.items()} | {f'{name}_interval': interval(v) for name, v in each.items()}
    for name in 'ab': # an interval that ends where the search does is open there
        ends = found[f'{name}_interval']
        if ends and not EXPONENTS[0] * 1.02 < ends[0] <= ends[1] < EXPONENTS[1] / 1.02:
            found[f'{name}_interval'] = None
    names = [r.name for r in runs if r.loss is not None]
    return found | {'rms': spread, 'residuals': dict(zip(names, relative.tolist())), 'draws': draws}

def best_of(draws, C):
    """ln N_opt, ln D_opt and the loss there at C FLOPs, by each draw (5, B) of surface()."""
    E, A, B, a, b = draws
    lnN = np.log(a * A / (b * B)) / (a + b) + b / (a + b) * math.log(C / 6)
    lnD = math.log(C / 6) - lnN
    return lnN, lnD, E + A * np.exp(-a * lnN) + B * np.exp(-b * lnD)

# ----------------------------------------------------------------------------------------------------------------
# a metric over compute

def compute(runs, metric):
    """ln m = k + g ln C through the best model of each budget.

    -> {'C', 'm', 'N' (of the best models), 'g', 'g_interval', 'k', 'draws' (k, g)}. Refused: one or two budgets, a metric
    that is the same everywhere, values not finite, and a score that is nowhere 2 standard errors from chance. The best of
    several noisy scores is a little too good, at every budget alike.
    """
    N, _, C, y, errors = values_of(runs, metric)
    pick = np.min if metric == 'loss' else np.max
    best = np.array([of[np.flatnonzero(y[of] == pick(y[of]))[0]] for of in budgets_of(C)])
    if len(best) < 3:
        raise Refused(f"{metric} over compute: {'one budget' if len(best) == 1 else 'two budgets'}, and a line through "
                      f"{'a point' if len(best) == 1 else 'two points'} fits anything; expected at least 3")
    if np.ptp(y[best]) < 1e-9 * abs(y[best]).max():
        raise Refused(f"{metric} over compute: flat, {y[best[0]]:.4g} at every budget")
    if metric != 'loss' and (abs(y[best] - CHANCE) < 2 * errors[best]).all():
        raise Refused(f"{metric} over compute: no budget is 2 standard errors away from chance")
    x, lny, df = np.log(C[best]), np.log(y[best]), len(best) - 2
    g, k = line(x, lny[:, None])
    hat = k + g * x
    spread = math.sqrt(((lny - hat) ** 2).sum() / df)
    known = np.nan_to_num(errors[best] / y[best]) # of the logarithm; the line's own scatter may be less by luck
    spread, df = max((spread, df), (math.sqrt((known ** 2).mean()), 1e6))
    g, k = line(x, hat[:, None] + noise(np.random.default_rng(0), len(x), spread, df))
    return {'metric': metric, 'C': C[best].tolist(), 'm': y[best].tolist(), 'N': N[best].tolist(), 'g': float(g[0]),
            'g_interval': interval(g), 'k': float(k[0]), 'draws': np.stack((k, g))}

def attempt(fit, *args):
    """A fit's result, or {'refused': why}."""
    try:
        return fit(*args)
    except Refused as e:
        return {'refused': str(e)}

def span(values, form='.3f'):
    return 'interval not determined' if values is None else f"{values[0]:{form}} to {values[1]:{form}}"
