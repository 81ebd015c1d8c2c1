"""
A scaling study of any models: plan and train its runs, fit curves to them, predict, draw.

    python -m scaling.plan        sizes x compute budgets: the table of runs, and their execution
    python -m scaling.fit         iso-FLOP curves, L(N, D) and metrics over compute, fitted to finished runs
    python -m scaling.predict     what to train for a compute budget
    python -m scaling.figures     the figures of SIMS from your runs
    python -m scaling.compare     curves and scores of a few runs side by side

May import: any room but papers, and the Config of train.py and eval.py, which it starts.
"""
