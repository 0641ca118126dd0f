"""The ledger: what a study has tried, with what results. The only package that knows Optuna."""
