"""The ledger: what a study has tried and what came of it. The only room that knows Optuna."""
