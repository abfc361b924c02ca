"""The pages of the site: staging, API reference, formulas, checks."""
