"""
What can be fitted to the finished runs of a scaling study, in numpy alone: iso-FLOP curves, the
loss over sizes and tokens, and a metric over compute. scaling.fit, scaling.predict and
scaling.figures print and draw these fits.

    isoflop    y = c0 + c1 x + c2 x^2, x = ln N, for each budget C by least squares; N_opt at its vertex;
               over the budgets ln N_opt = ln G + p ln C, and D_opt = C / (6 N_opt)
                                                                (Hoffmann et al. 2022, approach 2)
    surface    L(N, D) = E + A / N^a + B / D^b with E, A, B >= 0                      (approach 3)
               N_opt = G (C / 6)^(b / (a + b)),  G = (a A / (b B))^(1 / (a + b))
    compute    ln m = k + g ln C of the best model of each budget, m a metric or the loss:
               the power law of SIMS 2.2

surface minimizes the squares of the relative residuals (L_i - L(N_i, D_i)) / L_i, which to first
order are those of ln L, by variable projection (Golub and Pereyra 1973; for this law arXiv
2603.22339): at given a and b the rest is linear and solved exactly, so only (a, b) is searched,
over its whole range, by a grid that is then refined. Hoffmann et al. use a Huber loss against the
outliers of hundreds of runs. With a few dozen runs each one counts, so the residuals are shown
instead and no run is weighted down.

The 95 % intervals come from a parametric bootstrap: the fitted values plus normal noise with the
spread s of the residuals are fitted again, DRAWS times. With few runs s is uncertain itself, so
each draw has its own, s sqrt(df / chi2(df)); in the linear case this turns the normal distribution
into Student's t. What the data cannot support is Refused, with the reason.
"""
import math
from statistics import NormalDist

import numpy as np

from configurator import Refused
from scaling.runs import count, values_of

DRAWS = 1000 # of the bootstrap
EXPONENTS = (0.02, 2.0) # a and b are searched between these
CHANCE = 0.5 # the tasks have two alternatives

def budgets_of(C):
    """Groups runs of one budget: arrays of indices into C, by rising compute.

    Neighbors within 10 % belong together, since a run has a whole number of steps.
    """
    order = np.argsort(C, kind='stable')
    gaps = np.diff(np.log(C[order]))
    return np.split(order, np.flatnonzero(gaps > math.log(1.1)) + 1)

def noise(rng, n, spread, df):
    """(n, DRAWS) normal noise whose spread was estimated with df degrees of freedom.

    Column 0 is zero, so that the first draw of a fit is its estimate.
    """
    spreads = spread * np.sqrt(df / rng.chisquare(df, DRAWS))
    draws = rng.standard_normal((n, DRAWS)) * spreads
    draws[:, 0] = 0
    return draws

def interval(draws):
    """[2.5 %, 97.5 %] of draws, of which the first is the estimate; None if over 5 % are undefined.

    Bias-corrected percentiles (Efron 1987, without acceleration): if the draws are shifted against
    the estimate, the estimate is shifted as much against the truth, so the levels move by twice the
    shift.
    """
    draws = np.asarray(draws, dtype=float)
    defined = draws[np.isfinite(draws)]
    normal = NormalDist()
    if len(draws) < 2 or len(defined) < 0.95 * len(draws) or not math.isfinite(draws[0]):
        return None
    others = defined[1:]
    share_below = ((others < draws[0]).mean() + (others <= draws[0]).mean()) / 2
    share_below = min(max(share_below, 0.01), 0.99)
    levels = [normal.cdf(2 * normal.inv_cdf(share_below) + z) for z in (-1.96, 1.96)]
    return [float(quantile) for quantile in np.quantile(defined, levels)]

def fit_line(x, Y):
    """Slope and intercept of each column of Y (n, B) over x (n,), by least squares."""
    slope, at_mean = np.polyfit(x - x.mean(), Y, 1)
    return slope, at_mean - slope * x.mean()

def is_flat(y):
    return np.ptp(y) < 1e-9 * abs(y).max()

# --------------------------------------------------------------------------------------------------
# iso-FLOP curves

def vertices(log_N, groups, Y):
    """Vertices of the parabolas through Y (n, B) over log_N (n,), one for each group of indices.

    -> (x, y, c2): position, height and leading coefficient, each of (len(groups), B).
    """
    x = []
    top = []
    c2 = []
    for group in groups:
        middle = log_N[group].mean()
        a2, a1, a0 = np.polyfit(log_N[group] - middle, Y[group], 2)
        with np.errstate(divide='ignore', invalid='ignore'):
            x.append(middle - a1 / (2 * a2))
            top.append(a0 - a1 ** 2 / (4 * a2))
        c2.append(a2)
    return np.stack(x), np.stack(top), np.stack(c2)

def vertex_position(N_opt, N, best_N, is_undetermined):
    """Where the vertex of a budget's parabola lies among its sizes N: 'where' in isoflop's result."""
    if math.isnan(N_opt):
        return 'no optimum'
    if N_opt < N.min():
        return 'below the grid'
    if N_opt > N.max():
        return 'above the grid'
    if is_undetermined:
        return 'flat within the noise'
    return 'not bracketed' if best_N in (N.min(), N.max()) else 'inside'

def budget_row(C, N, y, errors, parabola, x, top, sign):
    """An entry of isoflop's 'budgets'; x and top (B,) are its vertices by draw."""
    ends = interval(x)
    N_opt = np.exp(x[0])
    has_optimum = not np.isnan(x[0])
    best_N = N[np.argmin(sign * y)]
    is_undetermined = len(x) > 1 and ends is None
    return {'C': float(np.exp(np.log(C).mean())),
            'N': N.tolist(),
            'y': y.tolist(),
            'stderr': np.nan_to_num(errors).tolist(),
            'parabola': parabola.tolist(),
            'best_N': float(best_N),
            'N_opt': float(N_opt) if has_optimum else None,
            'N_interval': ends and [float(np.exp(end)) for end in ends],
            'y_opt': float(top[0]) if has_optimum else None,
            'where': vertex_position(N_opt, N, best_N, is_undetermined)}

def isoflop(runs, metric):
    """Fits a parabola over ln N to each budget with at least 3 sizes, and N_opt(C) to their optima.

    -> {'metric', 'budgets': [{'C', 'N', 'y', 'stderr', 'parabola' (c2, c1, c0 in ln N), 'best_N'
    (of the runs), 'N_opt', 'N_interval', 'y_opt', 'where'}], 'left_out', 'rms', 'exponent_N', 'G',
    'exponent_D', each exponent with its _interval, 'draws' (ln G, p)}

    'where' is 'inside', 'below the grid', 'above the grid', 'no optimum', 'flat within the noise'
    or 'not bracketed' (the best run is the smallest or largest, although the vertex lies between
    them). The exponents need 3 budgets whose optimum is inside; without them 'refused' says why.
    Refused where no budget has 3 sizes, or values are equal or not finite.
    """
    N, _, C, y, errors = values_of(runs, metric)
    sign = 1 if metric == 'loss' else -1 # a score is best where it is highest
    groups = []
    left_out = []
    for group in budgets_of(C):
        n_sizes = len(np.unique(N[group]))
        if n_sizes >= 3:
            groups.append(group)
        else:
            left_out.append(f"{np.exp(np.log(C[group]).mean()):.3g} FLOPs: {count(n_sizes, 'size')}")
    if not groups:
        raise Refused(f"{metric}: no budget has 3 sizes for a parabola ({'; '.join(left_out)})")
    used = np.concatenate(groups)
    if is_flat(y[used]):
        raise Refused(f"{metric}: flat, {y[used[0]]:.4g} in all runs")
    log_N = np.log(N)
    parabolas = [np.polyfit(np.log(N[group]), y[group], 2) for group in groups]
    fitted = y.copy()
    for group, parabola in zip(groups, parabolas):
        fitted[group] = np.polyval(parabola, log_N[group])
    rms = spread = math.nan
    df = len(used) - 3 * len(groups)
    if df:
        rms = spread = float(np.sqrt(((y - fitted)[used] ** 2).sum() / df))
    elif not np.isnan(errors[used]).all():
        # 3 sizes leave no residuals. The noise is at least the evaluation's own error.
        spread = float(np.sqrt(np.nanmean(errors[used] ** 2)))
    Y = fitted[:, None]
    if math.isfinite(spread):
        Y = Y + noise(np.random.default_rng(0), len(y), spread, df or 1e6)
    x, top, c2 = vertices(log_N, groups, Y)
    x[sign * c2 <= 0] = math.nan # no minimum there
    rows = []
    for k, group in enumerate(groups):
        columns = C[group], N[group], y[group], errors[group]
        rows.append(budget_row(*columns, parabolas[k], x[k], top[k], sign))
    result = {'metric': metric,
              'budgets': rows,
              'left_out': left_out,
              'rms': None if math.isnan(rms) else rms}
    return result | exponents(metric, rows, x)

def exponents(metric, rows, x):
    """The part of isoflop's result over all budgets, from the vertices x (len(rows), B) by draw."""
    inside = [k for k, row in enumerate(rows) if row['where'] == 'inside']
    n = len(inside)
    if n < 3:
        why = {0: "", 1: ": one budget gives no exponent", 2: ": a line through two points fits anything"}[n]
        return {'refused': f"{metric}: N_opt(C) needs 3 budgets whose optimum lies inside the grid, there "
                           f"{'is' if n == 1 else 'are'} {n} of {len(rows)}{why}"}
    p, log_G = fit_line(np.log([rows[k]['C'] for k in inside]), x[inside])
    ends = interval(p)
    return {'exponent_N': float(p[0]),
            'exponent_N_interval': ends,
            'G': float(np.exp(log_G[0])),
            'exponent_D': 1 - float(p[0]),
            'exponent_D_interval': ends and [1 - ends[1], 1 - ends[0]],
            'draws': np.stack((log_G, p))}

# --------------------------------------------------------------------------------------------------
# the surface L(N, D)

def dot(u, v):
    """Scalar products over the last axis."""
    return np.einsum('...n,...n->...', u, v)

def solve_linear_part(a, b, log_N, log_D, y, w):
    """The best E, A, B at exponents a and b, and the weighted sum of squares that remains.

    log_N, log_D, w: (n,); y: (..., n). a and b broadcast against y's leading axes, and so do the
    results. A and B belong to N and D in units of their geometric means. The sum is inf where E, A
    or B would be negative: at the edge of what is allowed the best (a, b) has a neighbor inside
    that is as good.
    """
    unit = w / math.sqrt((w * w).sum()) # the constant E's column, normalized
    p = w * np.exp(-np.asarray(a)[..., None] * log_N)
    q = w * np.exp(-np.asarray(b)[..., None] * log_D)
    z = w * y
    p_unit = p @ unit
    q_unit = q @ unit
    z_unit = z @ unit
    # Project the constant out, then solve the normal equations of the other two columns.
    p = p - p_unit[..., None] * unit
    q = q - q_unit[..., None] * unit
    z = z - z_unit[..., None] * unit
    pp = dot(p, p)
    qq = dot(q, q)
    pq = dot(p, q)
    pz = dot(p, z)
    qz = dot(q, z)
    with np.errstate(divide='ignore', invalid='ignore'):
        det = pp * qq - pq * pq
        A = (pz * qq - qz * pq) / det
        B = (qz * pp - pz * pq) / det
        E = (z_unit - A * p_unit - B * q_unit) / math.sqrt((w * w).sum())
        sse = dot(z, z) - A * pz - B * qz
    allowed = (E >= 0) & (A > 0) & (B > 0) & (det > 1e-14 * pp * qq)
    return E, A, B, np.where(allowed, sse, np.inf)

def variable_projection(log_N, log_D, Y, w):
    """The best (a, b) for each row of Y (R, n): a grid over EXPONENTS, then ever finer ones.

    The grids are even in ln a and ln b; each finer one lies around the best point so far.
    -> a, b, E, A, B of (R,), nan where no exponents give E, A, B >= 0.
    """
    limits = np.log(EXPONENTS)
    grid = np.linspace(*limits, 33)
    log_a, log_b = (values.ravel() for values in np.meshgrid(grid, grid, indexing='ij'))
    a = np.exp(log_a)[:, None]
    b = np.exp(log_b)[:, None]
    sse = solve_linear_part(a, b, log_N, log_D, Y, w)[3] # (33 * 33, R)
    none_allowed = np.isinf(sse.min(0))
    best = sse.argmin(0)
    log_a = log_a[best]
    log_b = log_b[best]
    step = grid[1] - grid[0]
    moves = np.arange(-3, 4)
    moves_a, moves_b = (values.ravel() for values in np.meshgrid(moves, moves, indexing='ij'))
    for _ in range(9):
        # The step is halved; the window reaches 3 steps to each side, to be able to follow a ridge.
        step /= 2
        near_a = np.clip(log_a[:, None] + step * moves_a, *limits)
        near_b = np.clip(log_b[:, None] + step * moves_b, *limits)
        a = np.exp(near_a)
        b = np.exp(near_b)
        sse = solve_linear_part(a, b, log_N, log_D, Y[:, None], w)[3] # (R, 49)
        best = sse.argmin(1)[:, None]
        log_a = np.take_along_axis(near_a, best, 1)[:, 0]
        log_b = np.take_along_axis(near_b, best, 1)[:, 0]
    a = np.exp(log_a)
    b = np.exp(log_b)
    E, A, B, _ = solve_linear_part(a, b, log_N, log_D, Y, w)
    return tuple(np.where(none_allowed, math.nan, values) for values in (a, b, E, A, B))

def check_surface_data(N, D, C, L):
    """Refuses runs that cannot tell the five unknowns of the surface apart."""
    n_sizes = len(np.unique(N))
    n_token_counts = len(np.unique(D))
    for noun, n, least in (('runs', len(L), 7), ('sizes', n_sizes, 3), ('token counts', n_token_counts, 3)):
        if n < least:
            raise Refused(f"the surface has 5 unknowns: expected at least {least} {noun}, got {n}")
    if len(budgets_of(C)) < 2:
        raise Refused("one budget: N and D = C / 6N move together there, so it cannot be told which of "
                      "them the loss follows")
    if np.ptp(L) < 1e-6 * L.mean():
        raise Refused(f"the loss is flat, {L[0]:.4g} in all runs")

def is_inside_search(low, high):
    return EXPONENTS[0] * 1.02 < low <= high < EXPONENTS[1] / 1.02

def surface(runs):
    """Fits E + A / N^a + B / D^b to the runs' losses.

    -> {'E', 'A', 'B', 'a', 'b', 'exponent' (of N_opt in C), each with NAME_interval, 'rms'
    (relative), 'residuals' {run: relative}, 'draws' (5, DRAWS)}. Refused: fewer than 7 runs, 3
    sizes or 3 token counts, one budget, losses that are flat or not finite, and exponents that the
    data leave open (at the edge of the search).
    """
    N, D, C, L, _ = values_of(runs, 'loss')
    check_surface_data(N, D, C, L)
    mean_log_N = np.log(N).mean()
    mean_log_D = np.log(D).mean()
    log_N = np.log(N) - mean_log_N
    log_D = np.log(D) - mean_log_D
    a, b, E, A, B = (values[0] for values in variable_projection(log_N, log_D, L[None], 1 / L))
    if math.isnan(a):
        raise Refused("no exponents give E, A and B above 0: the loss does not fall with both N and D; "
                      "expected budgets with models too small as well as too large")
    fitted = E + A * np.exp(-a * log_N) + B * np.exp(-b * log_D)
    residuals = (L - fitted) / L
    at_edge = [f"{name} = {value:.3g}" for name, value in (('a', a), ('b', b))
               if not is_inside_search(value, value)]
    if at_edge:
        raise Refused(f"the data leave {' and '.join(at_edge)} open: the fit runs to the edge of "
                      f"{EXPONENTS[0]} to {EXPONENTS[1]}; expected a wider range of sizes and budgets, "
                      "or less noise")
    spread = math.sqrt((residuals ** 2).sum() / (len(L) - 5))
    Y = fitted * (1 + noise(np.random.default_rng(0), len(L), spread, len(L) - 5).T)
    a, b, E, A, B = variable_projection(log_N, log_D, Y, 1 / fitted)
    # Back from units of the geometric means to single parameters and tokens.
    A = A * np.exp(a * mean_log_N)
    B = B * np.exp(b * mean_log_D)
    draws_of = {'E': E, 'A': A, 'B': B, 'a': a, 'b': b, 'exponent': b / (a + b)}
    result = {name: float(draws[0]) for name, draws in draws_of.items()}
    for name, draws in draws_of.items():
        ends = interval(draws)
        if name in ('a', 'b') and ends and not is_inside_search(*ends):
            ends = None # an interval that ends where the search does is open
        result[f'{name}_interval'] = ends
    names = [run.name for run in runs if run.loss is not None]
    return result | {'rms': spread,
                     'residuals': dict(zip(names, residuals.tolist())),
                     'draws': np.stack((E, A, B, a, b))}

def best_of(draws, C):
    """ln N_opt, ln D_opt and the loss there at C FLOPs, by each draw (5, B) of surface()."""
    E, A, B, a, b = draws
    log_N = np.log(a * A / (b * B)) / (a + b) + b / (a + b) * math.log(C / 6)
    log_D = math.log(C / 6) - log_N
    return log_N, log_D, E + A * np.exp(-a * log_N) + B * np.exp(-b * log_D)

# --------------------------------------------------------------------------------------------------
# a metric over compute

def compute(runs, metric):
    """Fits ln m = k + g ln C to the best model of each budget.

    -> {'metric', 'C', 'm', 'N' (of the best models), 'g', 'g_interval', 'k', 'draws' (k, g)}.
    Refused: one or two budgets, a metric that is the same everywhere, values not finite, and a
    score that is nowhere 2 standard errors from chance. The best of several noisy scores is a
    little too good, at every budget alike.
    """
    N, _, C, y, errors = values_of(runs, metric)
    pick_best = np.argmin if metric == 'loss' else np.argmax
    best = np.array([group[pick_best(y[group])] for group in budgets_of(C)])
    if len(best) < 3:
        few = 'one budget, and a line through a point'
        if len(best) == 2:
            few = 'two budgets, and a line through two points'
        raise Refused(f"{metric} over compute: {few} fits anything; expected at least 3")
    if is_flat(y[best]):
        raise Refused(f"{metric} over compute: flat, {y[best[0]]:.4g} at every budget")
    if metric != 'loss' and (abs(y[best] - CHANCE) < 2 * errors[best]).all():
        raise Refused(f"{metric} over compute: no budget is 2 standard errors away from chance")
    x = np.log(C[best])
    log_y = np.log(y[best])
    df = len(best) - 2
    g, k = fit_line(x, log_y[:, None])
    fitted = k + g * x
    spread = math.sqrt(((log_y - fitted) ** 2).sum() / df)
    # The points may lie closer to the line by luck than the evaluation's own error of ln m allows.
    own_errors = np.nan_to_num(errors[best] / y[best])
    own_spread = math.sqrt((own_errors ** 2).mean())
    spread, df = max((spread, df), (own_spread, 1e6))
    g, k = fit_line(x, fitted[:, None] + noise(np.random.default_rng(0), len(x), spread, df))
    return {'metric': metric,
            'C': C[best].tolist(),
            'm': y[best].tolist(),
            'N': N[best].tolist(),
            'g': float(g[0]),
            'g_interval': interval(g),
            'k': float(k[0]),
            'draws': np.stack((k, g))}

# --------------------------------------------------------------------------------------------------

def attempt(fit, *args):
    """A fit's result, or {'refused': why}."""
    try:
        return fit(*args)
    except Refused as e:
        return {'refused': str(e)}

def interval_text(ends, form='.3f'):
    return 'interval not determined' if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"
