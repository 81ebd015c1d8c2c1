"""
A scaling study of any models: plan and train its runs, fit curves to them, predict, draw.

    python -m scaling.plan, scaling.fit, scaling.predict, scaling.figures, scaling.compare

May import: any room but papers, and the Config of train.py and eval.py, which it starts.
"""
